"""Studies: one question each, answered by arms that are trained with the same seeds and compared.

    NAME/study.yaml   what is trained: settings that all share, levels of a second factor, arms
    plan.py           reads it, and lists the trainings
    int8.py           measures quantised models, for the study of compression
    report.py         writes NAME/REPORT.md, results.json and results.png from recorded runs
    __main__.py       trains what is missing; read it first

`make experiment NAME=freezing` runs one.
"""
