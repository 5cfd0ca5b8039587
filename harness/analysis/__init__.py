"""Results: metrics of a split, figures of them, and tables of runs.

    metrics.py   called after each epoch (`harness/training/module.py`) and after training (`evaluate.py`)
    figures.py   called after training (`harness/training/evaluate.py`)
    compare.py, table.py     `harness compare`: the rows and columns, and their layout

`compare.py` reads recorded runs. `harness.training` may import the other three modules, but not this one or
`harness.search`, which are layers above it.
"""
