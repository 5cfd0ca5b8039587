"""The command line: `harness COMMAND`.

`main.py` holds the parser and the other commands, `sweeps.py` those about sweeps, `recorded.py` those about
recorded runs, `documents.py` what `--json` prints, `common.py` what several share.
The code that does a command's work is imported only when the command runs, so `--help` is instant.
`harness/api.py` offers most of the commands to Python code.

    train             training/command.py; --resume: training/resume_run.py; --dry-run: training/dry_run.py
    sweep, worker     search/sweep.py, search/worker.py
                      list, --status: search/report/status.py; --stop: search/coordinator/stop.py
    next              search/report/next_steps.py
    cross-validate    training/cross_validate.py
    lr-curve, lr-find training/lr_curve.py, training/lr_find.py
    rerun             training/rerun.py
    evaluate          training/evaluate.py
    finalize          training/finalize.py
    ensemble          training/ensemble.py
    ledger            tracking/readings.py
    compare           analysis/compare.py
    export, predict   export/run.py, export/predict.py
    data              data/summary.py
    ui                tracking/ui.py
    doctor            training/doctor.py
"""
