"""The commands `harness sweep`, `harness worker` and `harness replicate`.

`main.py` adds them to its parser. The work is in `harness/search/sweep.py` and `worker.py`; the tables of
`sweep list` and `--status` are in `harness/search/report/status.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness.cli import documents
from harness.cli.common import EXIT_OK, add_json, add_mlruns, config_dir, place_overrides, tracking_config
from harness.cli.documents import Document
from harness.errors import ConfigError


def add_sweep_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--extend", action="store_true", help="widen what it asks, and keep its trials")
    command.add_argument("--status", action="store_true", help="how far a sweep is: [NAME]")
    command.add_argument("--report", action="store_true", help="write a sweep's report.html anew: [NAME]")
    command.add_argument("--stop", action="store_true", help="stop it resumably, wherever it runs: [NAME]")
    add_json(command)
    _add_places(command)


def add_replicate_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("sweep", nargs="?", help="its name; default: the one called last")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what differs now: sweep.slots=…")
    command.add_argument(
        "--top", type=int, default=1, help="how many of the best configurations (default: 1)"
    )
    command.add_argument("--seeds", type=int, default=3, help="fresh seeds of each (default: 3)")
    command.add_argument(
        "--fresh-splits", action="store_true", help="draw validation images anew with each seed"
    )
    command.add_argument("--config-dir", type=Path, help="another folder of config groups")
    add_json(command)
    _add_places(command)


def add_next_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("sweep", nargs="?", help="its name; default: the one called last")
    add_json(command)
    _add_places(command)


def add_worker_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("sweep", nargs="?", help="its name; default: the one called last")
    command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="what differs here: data.dir=…")
    command.add_argument("--config-dir", type=Path, help="another folder of config groups")
    _add_places(command)


def _add_places(command: argparse.ArgumentParser) -> None:
    add_mlruns(command)
    command.add_argument("--storage", help="the database of sweeps, such as postgresql://…")


def _database(options: argparse.Namespace) -> str:
    from harness.search.database.storage import storage_url

    return storage_url(tracking_config(options).dir, options.storage)


def run_sweep(options: argparse.Namespace) -> int | Document:
    if options.report:
        return _report(options)
    if options.overrides == ["list"] or options.status or options.stop:
        return _look_at_sweeps(options)
    from harness.config.compose import compose_sweep, trace_origins
    from harness.config.provenance import annotate

    overrides = [*options.overrides, *place_overrides(options)]
    plan = compose_sweep(overrides, **config_dir(options))
    if options.print_config:
        resolved = {**plan.base.to_dict(), "sweep": plan.sweep.model_dump(mode="json")}
        print(annotate(resolved, trace_origins("sweep", overrides, **config_dir(options))))
        return EXIT_OK
    if options.dry_run:
        from harness.search.sweep import describe_sweep

        print(describe_sweep(plan))
        return EXIT_OK
    from harness.search import sweep

    return documents.of_sweep(sweep.run_sweep(plan, extend=options.extend))


def _look_at_sweeps(options: argparse.Namespace) -> Document:
    from harness.search.coordinator.stop import request_stop
    from harness.search.report import status
    from harness.search.report.messages import build_console, say

    console, storage = build_console(), status.open_sweeps(_database(options))
    if options.overrides == ["list"]:
        statuses = status.read_statuses(storage)
        console.print(status.sweeps_table(statuses))
        return documents.of_sweeps(statuses)
    found = status.find_sweep(storage, *_asked_for(options.overrides))
    if options.stop:
        request_stop(found)
        say(console, f"sweep {found.study_name}: whatever works on it stops at the end of its batch")
    now = status.read_status(found)
    say(console, status.status_line(now))
    console.print(status.status_table(now))
    return documents.of_status(now)


def _report(options: argparse.Namespace) -> Document:
    from harness.search.report.html.write import report_again
    from harness.search.report.messages import build_console

    name, _ = _asked_for(options.overrides)
    there = [
        text for text in options.overrides if "=" in text and not text.startswith(("sweep=", "sweep.name="))
    ]
    overrides = [*there, *place_overrides(options)]
    path = report_again(build_console(), name, _database(options), overrides, **config_dir(options))
    return documents.of_report(path)


def _asked_for(words: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the sweep's name and its config file, as given; `make sweep` passes `sweep=FILE`."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        raise ConfigError(f"one sweep at a time: {' '.join(names)} are {len(names)} names")
    return (names[0] if names else given.get("sweep.name")), given.get("sweep")


def run_next(options: argparse.Namespace) -> Document:
    from harness.search.report import status
    from harness.search.report.next_steps import next_steps

    found = status.find_sweep(status.open_sweeps(_database(options)), options.sweep)
    steps = next_steps(found, options.mlruns, options.storage)
    print(steps)
    return documents.of_next_steps(steps)


def run_worker(options: argparse.Namespace) -> int:
    from harness.config.compose import CONFIG_DIR
    from harness.search import worker

    name, overrides = _name_and_overrides(options)
    return worker.run_worker(name, _database(options), overrides, config_dir=options.config_dir or CONFIG_DIR)


def run_replicate(options: argparse.Namespace) -> Document:
    from harness.config.compose import CONFIG_DIR
    from harness.search.sweep import replicate_sweep

    name, overrides = _name_and_overrides(options)
    result = replicate_sweep(
        name,
        _database(options),
        [*overrides, *place_overrides(options)],
        asked={"top": options.top, "seeds": options.seeds, "fresh_splits": options.fresh_splits},
        config_dir=options.config_dir or CONFIG_DIR,
    )
    return documents.of_sweep(result)


def _name_and_overrides(options: argparse.Namespace) -> tuple[str | None, list[str]]:
    """Return the sweep's name, if the first argument is one, and the other arguments."""
    if options.sweep is None or "=" not in options.sweep:
        return options.sweep, options.overrides
    return None, [options.sweep, *options.overrides]
