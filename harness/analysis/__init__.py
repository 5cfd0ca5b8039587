"""Results: metrics of a split, figures of them, and tables of runs.

    metrics.py   called after each epoch (`harness/training/module.py`) and after training (`evaluate.py`)
    figures.py   called after training (`harness/training/evaluate.py`)
    compare.py, table.py     `harness compare`: the rows and columns, and their layout

`compare.py` reads recorded runs and so lies above `harness.training`; the other three lie below it.
"""
