"""The command line: `harness COMMAND`.

`main.py` holds the parser and most commands, `sweeps.py` those about sweeps, `common.py` the options that
several share. A command imports the function that does its work when it runs, so `--help` is instant.
`harness/api.py` offers the same functions to Python code.

    train             training/command.py; --resume: training/resume_run.py; --dry-run: training/dry_run.py
    sweep, worker     search/sweep.py, search/worker.py; list, --status, --stop: search/report/status.py
    evaluate          training/evaluate.py
    compare           analysis/compare.py
    export, predict   export/run.py, export/predict.py
    data              data/summary.py
    ui                tracking/ui.py
    doctor            training/doctor.py
"""
