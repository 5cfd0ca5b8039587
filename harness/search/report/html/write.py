"""Writes a sweep's report: a file in the sweep's folder, and an artifact of its run in MLflow.

`parent_run.py` calls `write_report` at the end of every `harness sweep`; `harness sweep --report` calls
`report_again`, which needs the database of sweeps alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import optuna
from rich.console import Console

from harness.config.compose import CONFIG_DIR, SweepPlan
from harness.data import load_splits
from harness.errors import DataError, SweepError, TrackingError, first_line
from harness.files import atomic_write
from harness.search.report.audit import audit
from harness.search.report.commands import TrainCommands
from harness.search.report.html.page import SweepFacts, render
from harness.search.report.leaderboard import importances_of
from harness.search.report.messages import REPORT_FILE, say
from harness.search.report.status import find_sweep, open_sweeps
from harness.search.report.verdict import judge_study
from harness.search.study import keys
from harness.search.study.locate import context_of, recorded_plan
from harness.search.study.trials import read_rows


def write_report(facts: SweepFacts, directory: Path) -> str:
    """Write the report into the sweep's folder, and return it.

    Raises:
        OSError: the file cannot be written.
    """
    page = render(facts)
    atomic_write(directory / REPORT_FILE, page)
    return page


def count_train_images(plan: SweepPlan, study: optuna.Study) -> int | None:
    """Return how many training images there are; None: the sweep's data are away, or here are others."""
    try:
        splits = load_splits(plan.base.data)
    except DataError:
        return None
    is_of_sweep = splits.digest == study.user_attrs.get(keys.IDENTITY, {}).get("data digest")
    return len(splits.train) if is_of_sweep else None


def report_again(
    console: Console, name: str | None, url: str, overrides: Sequence[str], config_dir: Path = CONFIG_DIR
) -> Path:
    """Write the report of a sweep anew, from its database; its MLflow run gets it too, if it is there.

    Args:
        name: the sweep's; None: the one that ran last.
        url: the database's address.
        overrides: settings that differ on this machine, such as `tracking.dir`.

    Raises:
        SweepError: there is no such sweep, it has not begun, or its folder cannot be written.
        ConfigError: its configuration can no longer be composed.
    """
    study = find_sweep(open_sweeps(url), name)
    plan = recorded_plan(study, url, overrides, config_dir)
    home = context_of(plan, study)
    rows = read_rows(study, home.runs)
    verdict = judge_study(study, rows, plan.sweep)
    num_train = count_train_images(plan, study)
    command = shlex.join(
        ["harness", "sweep", *plan.config_dir_option, *study.user_attrs[keys.PLAN]["overrides"]]
    )
    findings = audit(rows, plan, study.study_name, command, verdict.tied, num_train)
    facts = SweepFacts(
        plan=plan,
        study=study,
        rows=rows,
        verdict=verdict,
        findings=findings,
        command=command,
        best_command=TrainCommands(plan, study).of(verdict.best),
        importances=importances_of(study),
        num_train=num_train,
        test=study.user_attrs.get(keys.TEST),
    )
    path = home.directory / REPORT_FILE
    try:
        page = write_report(facts, home.directory)
    except OSError as error:
        raise SweepError(f"{path} cannot be written ({error.strerror}): choose another MLRUNS_DIR") from error
    say(console, f"report: {path}")
    if (reason := _record(plan, study, page)) is not None:
        say(console, f"note: it is in this file alone, as {reason}")
    return path


def _record(plan: SweepPlan, study: optuna.Study, page: str) -> str | None:
    """Store the report with the sweep's run in MLflow; return why that cannot be."""
    from harness.tracking.address import store_exists
    from harness.tracking.store import open_store

    run_id = study.user_attrs.get(keys.PARENT_RUN_ID)
    if run_id is None:
        return "the sweep has no run in MLflow yet"
    if not store_exists(plan.base.tracking):
        return f"there is no run store in {plan.base.tracking.dir}"
    try:
        store = open_store(plan.base.tracking)
        if not store.has_run(run_id):
            return f"the sweep's run {run_id} is not in {store.uri}"
        store.reopen_run(run_id).log_text(page, REPORT_FILE)
    except TrackingError as error:
        return first_line(error)
    return None
