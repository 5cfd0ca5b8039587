"""The commands that work with recorded runs: they evaluate, repeat, compare, combine and export them.

`main.py` adds them to its parser, and says what a `run_…` function does. Where their work is done stands in
this package's map, `__init__.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli import documents
from harness.cli.common import AddCommand, add_json, add_mlruns, terminal_width, tracking_config
from harness.cli.documents import Document
from harness.errors import ConfigError, TrackingError
from harness.signals import EXIT_INTERRUPTED, INTERRUPTED, raising

if TYPE_CHECKING:
    from harness.analysis.sweeps import SweepsComparison
    from harness.analysis.table import Comparison


def add_record_commands(add: AddCommand) -> None:
    """Add the commands of this file."""
    evaluate = add("evaluate", run_evaluate, "score a run's best checkpoint on a split, and record it")
    evaluate.add_argument(
        "reference", nargs="?", metavar="RUN", help="the same as --run: an id, a name, or a sweep's name"
    )
    evaluate.add_argument(
        "--split", default="test", metavar="val|test|FOLDER", help="default: test; or a tree of class folders"
    )
    again = add(
        "rerun",
        run_rerun,
        "train a recorded run again as it was, its code included, and compare every metric",
    )
    again.add_argument("reference", metavar="RUN", help="a run's id, a prefix of it, or its name")
    again.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="data.dir=… trainer.device=… alone")
    again.add_argument("--here", action="store_true", help="with the code as it is now")
    compare = add("compare", run_compare, "a table of runs: scores, time, and what differs between them")
    compare.add_argument(
        "runs", nargs="*", metavar="RUN", help="run ids; default: the trials of the sweep that ran last"
    )
    compare.add_argument("--sweep", help="a sweep's name, or its run's id")
    compare.add_argument(
        "--sweeps", nargs="+", metavar="SWEEP", help="whole sweeps, at the smallest's budget"
    )
    compare.add_argument("--filter", help='an MLflow filter, such as "metrics.`val/accuracy` > 0.8"')
    compare.add_argument("--sort", help="the column to sort by; default: the sweep's own ranking")
    compare.add_argument(
        "--wide", action="store_true", help="every metric and column, however wide the terminal is"
    )
    compare.add_argument("--output", type=Path, help="for the files (default: reports/compare)")
    finalize = add("finalize", run_finalize, "a sweep's winner on the test split, once, with an interval")
    finalize.add_argument("sweep", nargs="?", help="its name or run's id; default: the one that ran last")
    finalize.add_argument(
        "--retrain", action="store_true", help="train it again first, on the validation images too"
    )
    finalize.add_argument("--again", action="store_true", help="although it was done before")
    ensemble = add(
        "ensemble",
        run_ensemble,
        "several trained models as one: mean probabilities, or with --soup mean weights",
    )
    ensemble.add_argument(
        "models", nargs="*", metavar="SWEEP|RUN", help="a sweep (default: the last), or two runs and more"
    )
    ensemble.add_argument("--top", type=int, help="how many of a sweep's best trials (default: 5)")
    ensemble.add_argument("--greedy", action="store_true", help="choose the members on validation images")
    ensemble.add_argument(
        "--soup", action="store_true", help="average the weights: one model, as fast as one"
    )
    ensemble.add_argument("--test", action="store_true", help="read the test split with it, once")
    ensemble.add_argument("--again", action="store_true", help="with --test: although it was read before")
    ledger = add(
        "ledger", run_ledger, "every reading of the test split: when, of which model, by which command"
    )
    ledger.add_argument("reference", nargs="?", metavar="RUN", help="of this sweep or run alone: name or id")
    export = add("export", run_export, "write a verified bundle: safetensors, ONNX, model card, checksums")
    export.add_argument("--output", type=Path, default=Path("exports"))
    export.add_argument(
        "--int8",
        type=float,
        nargs="?",
        const=0.02,
        metavar="LOSS",
        help="write a quantised model, too, unless it loses more than this share of accuracy (default: 0.02)",
    )
    ui = add("ui", run_ui, "serve the MLflow UI on this machine")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument(
        "--assistant",
        action="store_true",
        help="serve MLflow's assistant too, which runs commands here for every user of this machine",
    )
    for command in (evaluate, export):
        command.add_argument(
            "--run",
            dest="run_id",
            help="a run's id or a sweep's name; default: the best of the sweep that ran last",
        )
    for command in (evaluate, again, compare, finalize, ensemble, ledger, export, ui):
        add_mlruns(command)
    for command in (evaluate, again, compare, finalize, ensemble, ledger, export):
        add_json(command)


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def run_evaluate(options: argparse.Namespace) -> Document:
    from harness.training.evaluate import evaluate_run

    if options.reference and options.run_id and options.reference != options.run_id:
        raise ConfigError(f"RUN is {options.reference} and --run is {options.run_id}: name one run")
    reference = options.reference or options.run_id
    done = evaluate_run(tracking_config(options), reference, options.split, show=print)
    print(f"run {done.run.run_id} ({done.run.name}), {done.checkpoint}")
    width = max(map(len, done.metrics))
    print("\n".join(f"{name:<{width}} {value:.4f}" for name, value in done.metrics.items()))
    for line in (*done.notes, *filter(None, [done.readings])):
        print(line)
    return documents.of_evaluation(done)


def run_rerun(options: argparse.Namespace) -> Document:
    from harness.training.commands.rerun import rerun

    done = rerun(tracking_config(options), options.reference, options.overrides, here=options.here)
    print(done)
    if done.repetition is not None:
        print(done.repetition.to_text(terminal_width()))
    return documents.of_rerun(done)


def run_compare(options: argparse.Namespace) -> Document:
    if options.sweeps:
        return _compare_sweeps(options)
    from harness.analysis.compare import compare_runs

    comparison = compare_runs(
        tracking_config(options),
        options.runs,
        sweep=options.sweep,
        filter=options.filter,
        sort=options.sort,
    )
    print(comparison.to_text(terminal_width(), wide=options.wide))
    return documents.of_comparison(comparison, _write_comparison(comparison, options.output))


def _compare_sweeps(options: argparse.Namespace) -> Document:
    from harness.analysis.sweeps import compare_sweeps

    if options.runs or options.sweep or options.filter or options.sort:
        raise ConfigError("--sweeps compares whole sweeps: give no runs, --sweep, --filter or --sort with it")
    comparison = compare_sweeps(tracking_config(options), options.sweeps)
    print(comparison.to_text(terminal_width()))
    return documents.of_sweeps_comparison(comparison, _write_comparison(comparison, options.output))


def _write_comparison(comparison: Comparison | SweepsComparison, output: Path | None) -> list[Path]:
    """Write a comparison's files; a default folder that cannot be written is no error."""
    try:
        files = list(comparison.write(output or Path("reports/compare")))
    except TrackingError as error:
        if output is not None:
            raise
        print(f"not written: {error}")
        return []
    print("written: " + ", ".join(map(str, files)))
    return files


def run_finalize(options: argparse.Namespace) -> Document:
    from harness.training.commands.finalize import finalize

    found = finalize(
        tracking_config(options), options.sweep, retrain=options.retrain, again=options.again, show=print
    )
    if found is None:
        return documents.of_error("Interrupted", INTERRUPTED, EXIT_INTERRUPTED)
    print(found)
    return documents.of_final(found)


def run_ensemble(options: argparse.Namespace) -> Document:
    if options.again and not options.test:
        raise ConfigError("--again reads the test split once more: say --test --again")
    if options.top is not None and len(options.models) > 1:
        raise ConfigError("--top takes the best trials of one sweep: name a sweep, or leave it out")
    from harness.training.commands.ensemble import combine

    found = combine(
        tracking_config(options),
        options.models,
        top=5 if options.top is None else options.top,
        greedy=options.greedy,
        soup=options.soup,
        test=options.test,
        again=options.again,
        show=print,
    )
    print(found)
    return documents.of_combined(found)


def run_ledger(options: argparse.Namespace) -> Document:
    from harness.tracking.readings import describe_ledger
    from harness.tracking.runs import read_ledger

    noted = read_ledger(tracking_config(options), options.reference)
    print(describe_ledger(noted))
    return documents.of_ledger(noted)


def run_export(options: argparse.Namespace) -> Document:
    from harness.export import export_run

    with raising():  # so that the unfinished bundle is removed
        result = export_run(
            tracking_config(options), options.run_id, options.output, options.int8, show=print
        )
    print(result)
    return documents.of_export(result)


def run_ui(options: argparse.Namespace) -> int:
    from harness.tracking.ui import serve

    with raising():  # so that the server is ended first
        return serve(tracking_config(options), options.port, assistant=options.assistant)
