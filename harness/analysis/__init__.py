"""Results: metrics of a split, figures of them, and tables of runs.

metrics.py, figures.py   called after training and evaluation (`harness/training/evaluate.py`)
compare.py, table.py     `harness compare`: the rows and columns, and their layout
"""
