"""The command `harness rerun RUN`: trains a recorded run again as it was, and compares what comes out.

`harness.cli` and `harness.api` call `rerun`. `rerun_setup.py` finds the run's code and settles its
configuration; `rerun_child.py` is the process that trains; `harness.analysis.repetition` compares.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.analysis.repetition import Repetition, compare_points
from harness.config.schema import TrackingConfig, TrainerConfig
from harness.errors import HarnessError, RerunError
from harness.signals import EXIT_INTERRUPTED, StopSignals
from harness.tracking import names
from harness.tracking.artifacts import RecordedCode, load_code, read_points
from harness.tracking.environment import capture_environment
from harness.tracking.runs import RunRecord, get_run, read_config
from harness.tracking.store import open_store
from harness.training.commands import rerun_child
from harness.training.commands.rerun_setup import Code, find_code, machine_differences, newer_settings, settle
from harness.training.devices.machine import resolve_machine

EXIT_DIFFERENT = 3
STOPPED = (EXIT_INTERRUPTED, 128 + signal.SIGTERM, -signal.SIGTERM)  # exit codes of an interrupted process


@dataclass(frozen=True)
class Rerun:
    """A recorded run, trained again."""

    repeated: RunRecord
    run_id: str  # of the rerun
    code: str  # which code trained it, in words
    differences: tuple[str, ...]  # what was not as it was then, known before the training
    repetition: Repetition | None  # None: the training was interrupted
    checkpoint: Path

    @property
    def exit_code(self) -> int:
        """0 if all metrics are equal."""
        if self.repetition is None:
            return EXIT_INTERRUPTED
        return 0 if self.repetition.is_equal else EXIT_DIFFERENT

    def __str__(self) -> str:
        return f"run {self.run_id} repeats run {self.repeated.run_id} ({self.repeated.name})"


def rerun(
    tracking: TrackingConfig,
    reference: str,
    overrides: Sequence[str] = (),
    *,
    here: bool = False,
    show: Callable[[str], None] = print,
) -> Rerun:
    """Train a recorded run again: its configuration, seed, code and images; compare all its metrics.

    The run that is repeated stays as it is. The test split is not read: its metrics are not compared.

    Args:
        reference: a run's id, a unique prefix of it, or its name.
        overrides: of the few settings that a rerun may change (`rerun_setup.MAY_CHANGE`).
        here: train with the code as it is now, whatever the run's was.
        show: called with each line for people.

    Raises:
        TrackingError: there is no such run, or it has not recorded what a rerun needs.
        RerunError: its code or its images are not at hand, or it is not a run that trains.
        HarnessError: the training failed.
    """
    run = get_run(tracking, reference)
    _check_repeatable(run)
    recorded, config = load_code(tracking, run), read_config(run)
    pruned_after = int(run.metrics.get(names.EPOCH, 0)) + 1 if run.tags.get(names.PRUNED) == "true" else None
    settled, notes = settle(tracking, run, config, overrides, is_pruned_after=pruned_after)
    with find_code(recorded, here=here) as code:
        differences = (*code.differences, *notes, *_differences(run, recorded, config, here))
        show(f"run {run.run_id} ({run.name}), seed {config.get('seed')}; code: {code.words}")
        for line in differences:
            show(f"differs from then: {line}")
        done = Rerun(run, "", code.words, differences, None, Path())
        return _train_and_compare(tracking, done, code, settled, show)


def _check_repeatable(run: RunRecord) -> None:
    """Refuse what is no ended training.

    Raises:
        RerunError: it is a sweep, or still trains.
    """
    if run.kind == "sweep":
        raise RerunError(
            f"{run.name} is a sweep: name one of its trials (harness compare --sweep {run.sweep or run.name})"
        )
    if run.status == "RUNNING":
        raise RerunError(f"run {run.run_id} ({run.name}) has not ended: wait for it, or resume it first")


def _differences(run: RunRecord, recorded: RecordedCode, config: Mapping[str, Any], here: bool) -> list[str]:
    device = run.params.get("machine.device", "cpu")
    try:
        machine = resolve_machine(TrainerConfig(device=device))  # type: ignore[arg-type]
    except HarnessError:
        machine = resolve_machine(TrainerConfig())
    now = capture_environment(machine.describe()["device_name"])
    found = machine_differences(recorded.environment, now)
    return found + (newer_settings(config) if here else [])


def _train_and_compare(
    tracking: TrackingConfig,
    planned: Rerun,
    code: Code,
    config: Mapping[str, Any],
    show: Callable[[str], None],
) -> Rerun:
    """Train in a process of its own, and compare; the rerun's record says which run it repeats."""
    run, store = planned.repeated, open_store(tracking)

    def begin(digest: str) -> str:
        """Open the rerun's record, once its process has found the images."""
        if run.data_digest is not None and not digest.startswith(run.data_digest):
            data = config["data"]
            raise RerunError(
                f"run {run.run_id} was trained on images with digest {run.data_digest[:12]}; data.kind="
                f"{data['kind']} in {data['dir']} now gives {digest[:12]}: put the data back, or name their "
                "folder with data.dir=FOLDER"
            )
        tags = {names.KIND: "train", names.RERUN_OF: run.run_id, names.RERUN_CODE: code.words}
        experiment = store.client.get_experiment(run.experiment_id).name
        begun.append(store.start_run(f"{run.name}-again", experiment, tags).run_id)
        return begun[0]

    begun: list[str] = []
    try:
        run_id, exit_code = _train_in_child(code, config, run.run_id, begin)
    except HarnessError:
        for failed in begun:
            store.close_run(failed, "FAILED")
        raise
    folder = Path(config["tracking"]["dir"]) / "checkpoints" / run_id
    if exit_code:  # Ctrl-C or SIGTERM
        show("interrupted; a rerun is not resumed: the same command begins again")
        return Rerun(run, run_id, code.words, planned.differences, None, folder / "best.ckpt")
    again = get_run(tracking, run_id)
    others = other_models(run, again)
    for line in others:
        show(f"differs from then: {line}")
    planned = replace(planned, differences=(*planned.differences, *others))
    found = compare_points(read_points(tracking, run), read_points(tracking, again))
    tracker = store.reopen_run(run_id)
    content = {"rerun_of": run.run_id, "code": code.words, "differences": list(planned.differences)}
    tracker.log_dict({**content, "is_equal": found.is_equal, **asdict(found)}, names.RERUN_FILE)
    tracker.finish("FINISHED")
    return Rerun(run, run_id, code.words, planned.differences, found, folder / "best.ckpt")


def other_models(run: RunRecord, again: RunRecord) -> list[str]:
    """Return which of the trained models that a run builds on have other weights now, in lines for people."""
    built_on = {"init_from": "init.digest", "distill.teacher": "teacher.digest"}
    return [
        f"{setting}: weights {run.params[digest][:12]} then, {again.params.get(digest, 'none')[:12]} now"
        for setting, digest in built_on.items()
        if digest in run.params and run.params[digest] != again.params.get(digest)
    ]


def _train_in_child(
    code: Code, config: Mapping[str, Any], repeated: str, begin: Callable[[str], str]
) -> tuple[str, int]:
    """Train in a process that imports the package of `code`.

    Args:
        repeated: the id of the run that is repeated.
        begin: called with the digest of the images that the process has found; returns the id of the run to
            record, or raises.

    Returns:
        The run's id, and 0, or the exit code of an interrupted training.

    Raises:
        HarnessError: the process failed, with its message.
    """
    with tempfile.TemporaryDirectory(prefix="harness-rerun-") as folder:
        job = Path(folder) / "job.json"
        command = ["harness", "rerun", repeated]
        content = {"config": config, "package": str(code.package), "command": command}
        job.write_text(json.dumps(content), encoding="utf-8")
        reader, writer = os.pipe()
        path = os.pathsep.join(filter(None, [str(code.package.parent), os.environ.get("PYTHONPATH")]))
        child = subprocess.Popen(
            [sys.executable, "-P", str(Path(rerun_child.__file__)), str(job), str(writer)],
            stdin=subprocess.PIPE,
            pass_fds=[writer],
            env=os.environ | {"PYTHONPATH": path},
            text=True,
        )
        os.close(writer)
        # The terminal sends Ctrl-C to both processes; this one waits for the other to stop.
        with StopSignals(lambda number, _: child.terminate() if number == signal.SIGTERM else None):
            try:
                with os.fdopen(reader) as reports:
                    line = reports.readline()
                run_id = begin(json.loads(line)["digest"]) if line else ""
                child.communicate(f"{run_id}\n" if run_id else "")
            except BaseException:
                child.communicate("")
                raise
        error = job.with_name("error")
        if error.is_file():
            raise HarnessError(f"the rerun failed: {error.read_text(encoding='utf-8')}")
    if child.returncode not in (0, *STOPPED):
        raise HarnessError(f"the process of the rerun ended with exit code {child.returncode}")
    if not run_id:
        raise KeyboardInterrupt
    return run_id, child.returncode
