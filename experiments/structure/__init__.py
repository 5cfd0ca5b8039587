"""Counts that describe the code's structure: `python -m experiments.structure [REVISION or PATH ...]`.

__main__.py   the command: prints the counts of each tree (a git revision or a folder)
figures.py    counts in the source text: lines, functions, comments, import cycles
frames.py     runs a sweep of one trial, and lists the functions called from the command to the optimiser
probe.py      runs in that sweep's processes, and records their stacks
"""
