"""The command line: `harness COMMAND`.

`main.py` holds the parser and the other commands, `sweeps.py` those about sweeps, `recorded.py` those about
recorded runs, `documents.py` what `--json` prints, `common.py` what several share.
The code that does a command's work is imported only when the command runs, so `--help` is instant.
`harness/api.py` offers most of the commands to Python code.

    train             training/command.py; --resume, --dry-run: training/commands/resume_run.py, dry_run.py
    sweep, worker     search/sweep.py, search/worker.py
                      list, --status: search/report/status.py; --stop: search/coordinator/stop.py
    next              search/report/next_steps.py
    cross-validate    training/commands/cross_validate.py
    lr-curve, lr-find training/commands/lr_curve.py, lr_find.py
    rerun             training/commands/rerun.py
    evaluate          training/evaluate.py
    finalize          training/commands/finalize.py
    ensemble          training/commands/ensemble.py
    ledger            tracking/readings.py
    compare           analysis/compare.py
    export, predict   export/run.py, export/predict.py
    data              data/summary.py
    ui                tracking/ui.py
    doctor            training/commands/doctor.py
"""
