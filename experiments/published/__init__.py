"""Five published trainings on CIFAR-10, repeated with the harness, measured, and improved step by step.

`make experiment NAME=keras_cnn_5` runs one of them (`__main__.py`). Each has a folder here with its plan
(`experiment.yaml`) and its report (`REPORT.md`); the training itself is the recipe of that name in
`configs/recipe/`. Read `plan.py` next, then `runs.py`.
"""
