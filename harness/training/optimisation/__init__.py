"""What an optimiser step is made of.

losses.py          the loss of a batch, and penalties on the weights
optim.py, muon.py  optimisers and their parameter groups
schedules.py       learning rates over the run
sam.py             the gradient of sharpness-aware minimisation
averaging.py       averages of the weights over the run (EMA, SWA)
"""
