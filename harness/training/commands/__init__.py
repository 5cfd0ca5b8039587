"""The commands about trainings, besides `harness train` (`harness.training.command`).

resume_run.py      `harness train --resume`; dry_run.py: `--dry-run`
cross_validate.py  `harness cross-validate`: a run for each fold, and what they amount to
ensemble.py        `harness ensemble`: several models as one; soup.py averages their weights
finalize.py        `harness finalize`: a sweep's winner, tested once
rerun.py           `harness rerun`; rerun_setup.py: its code and settings; rerun_child.py: its process
lr_curve.py        `harness lr-curve`, the learning rate of each step
lr_find.py         `harness lr-find`, a learning rate to begin with
doctor.py          `harness doctor` describes this machine
"""
