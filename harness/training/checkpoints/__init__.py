"""Checkpoints: what they hold, how they are written and found again.

checkpoint.py      what a checkpoint holds, and how a model is rebuilt from it
checkpoint_io.py   writes one to disk
resume_point.py    finds the one from which an interrupted run goes on
trained_model.py   finds and loads the model of a run or a bundle
"""
