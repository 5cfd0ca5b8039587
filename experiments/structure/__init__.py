"""Figures of the code's structure: `python -m experiments.structure [REVISION or PATH ...]`.

__main__.py   the command: a column for each tree
figures.py    what is counted in the source text
frames.py     runs a sweep of one trial, and counts the functions from the command to the optimiser
probe.py      runs in that sweep's processes; it records their stacks
"""
