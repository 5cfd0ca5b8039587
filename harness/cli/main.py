"""The parser of every command, and the commands other than those about sweeps (`sweeps.py`).

`harness/__main__.py` calls `main`. Each `run_…` function is one command: it turns options into arguments,
calls the function that does the work, and prints the result.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from harness import __version__
from harness.cli import sweeps
from harness.cli.common import (
    EXIT_OK,
    EXIT_USAGE,
    add_mlruns,
    config_dir,
    place_overrides,
    terminal_width,
    tracking_config,
)
from harness.credentials import shown
from harness.errors import ConfigError, HarnessError, TrackingError
from harness.logs import never_fail_to_print, show_messages
from harness.signals import EXIT_INTERRUPTED, INTERRUPTED, raising

AddCommand = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 done, 2 a mistake, which was printed in one line, 130 interrupted.
    """
    never_fail_to_print()
    try:
        options = parse(arguments)
        show_messages()
        code: int = options.run(options)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    # `harness compare | head`. Python writes to stdout once more when it ends, which would print a traceback.
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return EXIT_INTERRUPTED
    return code


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; unlike argparse alone, it takes options and overrides in any order."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(shown(f"unrecognized arguments: {' '.join(rest)}"))
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(prog="harness", description=sys.modules["harness"].__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(run=run)
        return command

    _add_configured_commands(add)
    sweeps.add_worker_options(add("worker", sweeps.run_worker, "work on a sweep that was begun elsewhere"))
    _add_record_commands(add)
    predict = add("predict", run_predict, "classify image files with an exported bundle")
    predict.add_argument("bundle", type=Path, help="exports/<name>")
    predict.add_argument("images", nargs="+", type=Path, help="files, or folders of them")
    predict.add_argument("--top", type=int, default=3, help="classes to show")
    add_mlruns(add("doctor", run_doctor, "print what this machine has and what `auto` means on it"))
    return parser


def _add_configured_commands(add: AddCommand) -> None:
    """Add the commands that take a configuration."""
    sweep = add(
        "sweep", sweeps.run_sweep, "search a space of configurations; repeat it to go on; `list` lists them"
    )
    train = add("train", run_train, "train one configuration")
    data = add("data", run_data, "print what a data set holds and draw samples of it")
    for command in (sweep, train, data):
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="model=lenet optim.lr=3e-4 …")
        command.add_argument("--config-dir", type=Path, help="another folder of config groups")
    for command in (sweep, train):
        command.add_argument("--print-config", action="store_true", help="show each value and its origin")
        command.add_argument("--dry-run", action="store_true", help="check and describe; train nothing")
    sweeps.add_sweep_options(sweep)
    train.add_argument("--resume", metavar="RUN", help="go on with a run, as it was configured")
    add_mlruns(train)
    data.add_argument("--output", type=Path, default=Path("reports/data"), help="for the pictures")
    data.add_argument("--features", action="store_true", help="list the cached features instead")
    data.add_argument("--clear", action="store_true", help="with --features: remove them")


def _add_record_commands(add: AddCommand) -> None:
    """Add the commands that look at what was recorded."""
    evaluate = add("evaluate", run_evaluate, "score a run's best checkpoint on a split, and record it")
    evaluate.add_argument("--split", choices=("val", "test"), default="test")
    compare = add("compare", run_compare, "a table of runs: scores, time, and what differs between them")
    compare.add_argument(
        "runs", nargs="*", metavar="RUN", help="run ids; default: the trials of the sweep that ran last"
    )
    compare.add_argument("--sweep", help="a sweep's name, or its run's id")
    compare.add_argument("--filter", help='an MLflow filter, such as "metrics.`val/accuracy` > 0.8"')
    compare.add_argument("--sort", help="the column to sort by; default: the sweep's own ranking")
    compare.add_argument("--wide", action="store_true", help="every column, however wide the terminal is")
    compare.add_argument("--output", type=Path, help="for the files (default: reports/compare)")
    export = add("export", run_export, "write a verified bundle: safetensors, ONNX, model card, checksums")
    export.add_argument("--output", type=Path, default=Path("exports"))
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
    for command in (evaluate, compare, export, ui):
        add_mlruns(command)


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def run_train(options: argparse.Namespace) -> int:
    from harness.config.compose import compose_run, trace_origins
    from harness.config.provenance import annotate

    if options.resume:
        return _resume_train(options)
    overrides = [*options.overrides, *place_overrides(options)]
    config = compose_run(overrides, **config_dir(options))
    if options.print_config:
        print(annotate(config.to_dict(), trace_origins("run", overrides, **config_dir(options))))
        return EXIT_OK
    if options.dry_run:
        from harness.training.dry_run import describe_run

        print(describe_run(config))
        return EXIT_OK
    from harness.training.command import run_training

    return run_training(config)[0]


def _resume_train(options: argparse.Namespace) -> int:
    if options.print_config or options.dry_run:
        raise ConfigError("--resume goes on with the run as it was configured: give no other option")
    from harness.training.resume_run import resume_training

    return resume_training(tracking_config(options), options.resume, options.overrides)[0]


def run_data(options: argparse.Namespace) -> int:
    from harness.config.compose import compose_run
    from harness.data.summary import summarise, summarise_features

    config = compose_run(options.overrides, **config_dir(options))
    if options.clear and not options.features:
        raise ConfigError("--clear removes cached features: say --features --clear")
    if options.features:
        print(summarise_features(config.data, clear=options.clear))
        return EXIT_OK
    # No batches are made here, so a data set that is smaller than a batch can be described as well.
    data = config.data.model_copy(update={"batch_size": 1})
    print(summarise(data, options.output, augment=config.augment))
    return EXIT_OK


def run_evaluate(options: argparse.Namespace) -> int:
    from harness.training.evaluate import evaluate_run

    done = evaluate_run(tracking_config(options), options.run_id, options.split, show=print)
    print(f"run {done.run.run_id} ({done.run.name}), {done.checkpoint}")
    print("\n".join(f"{name:<16} {value:.4f}" for name, value in done.metrics.items()))
    if done.readings is not None:
        print(done.readings)
    return EXIT_OK


def run_compare(options: argparse.Namespace) -> int:
    from harness.analysis.compare import compare_runs

    comparison = compare_runs(
        tracking_config(options), options.runs, sweep=options.sweep, filter=options.filter, sort=options.sort
    )
    print(comparison.to_text(None if options.wide else terminal_width()))
    try:
        print("written: " + ", ".join(map(str, comparison.write(options.output or Path("reports/compare")))))
    except TrackingError as error:
        if options.output is not None:
            raise
        print(f"not written: {error}")
    return EXIT_OK


def run_export(options: argparse.Namespace) -> int:
    from harness.export import export_run

    with raising():  # so that the unfinished bundle is removed
        print(export_run(tracking_config(options), options.run_id, options.output, show=print))
    return EXIT_OK


def run_predict(options: argparse.Namespace) -> int:
    from harness.export import predict_files

    result = predict_files(options.bundle, options.images, top_k=options.top)
    print(result)
    return EXIT_USAGE if result.failed else EXIT_OK


def run_ui(options: argparse.Namespace) -> int:
    from harness.tracking.ui import serve

    with raising():  # so that the server is ended first
        return serve(tracking_config(options), options.port, assistant=options.assistant)


def run_doctor(options: argparse.Namespace) -> int:
    from harness.training.doctor import diagnose

    print(diagnose(tracking_config(options), Path(os.environ.get("DATA_DIR", "data"))))
    return EXIT_OK
