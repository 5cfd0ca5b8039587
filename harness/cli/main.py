"""The parser of every command, and the commands that are neither in `recorded.py` nor in `sweeps.py`.

`harness/__main__.py` calls `main`. Each `run_…` function is one command: it turns options into arguments,
calls the function that does the work, prints the result, and returns an exit code or, where `--json` may be
asked for, the result as a document.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness import __version__
from harness.cli import documents, recorded, sweeps
from harness.cli.common import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_USAGE,
    AddCommand,
    Run,
    add_json,
    add_mlruns,
    config_dir,
    place_overrides,
    tracking_config,
)
from harness.cli.documents import Document, nothing_else_on_stdout
from harness.credentials import shown
from harness.errors import ConfigError, HarnessError
from harness.logs import never_fail_to_print, show_messages
from harness.signals import EXIT_INTERRUPTED, INTERRUPTED

if TYPE_CHECKING:
    from harness.training.result import RunResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; with `--json`, print its result, or what went wrong, as one document.

    Returns:
        The exit code: 0 done, 2 a mistake, which was printed in one line, 130 interrupted.
    """
    never_fail_to_print()
    words = sys.argv[1:] if arguments is None else arguments
    try:
        answer = _answer_in_json(words) if "--json" in words else _answer(words)
    # `harness compare | head`. Python writes to stdout once more when it ends, which would print a traceback.
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    return answer.exit_code if isinstance(answer, Document) else answer


def _answer_in_json(words: Sequence[str]) -> int | Document:
    """Run a command, and print its result, or what went wrong, as one document."""
    try:
        with nothing_else_on_stdout():
            answer = _answer(words)
    except UnreadableCommand as left:
        print(documents.of_error("UsageError", left.message, EXIT_USAGE).to_json(), flush=True)
        raise
    except Exception as error:  # a bug, which keeps its traceback
        print(documents.of_error(type(error).__name__, str(error), EXIT_BUG).to_json(), flush=True)
        raise
    if isinstance(answer, Document):
        print(answer.to_json(), flush=True)
    return answer


def _answer(words: Sequence[str]) -> int | Document:
    """Run a command and return its result; a mistake is printed, and returned as a document."""
    try:
        options = parse(words)
        show_messages()
        answer: int | Document = options.run(options)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return documents.of_error(type(error).__name__, str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return documents.of_error("Interrupted", INTERRUPTED, EXIT_INTERRUPTED)
    return answer


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the parsed command line; unlike argparse alone, it takes options and overrides in any order."""
    parser = build_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(text.startswith("-") for text in rest)):
        parser.error(shown(f"unrecognized arguments: {' '.join(rest)}"))
    if getattr(options, "json", False) and any(
        getattr(options, other, False) for other in ("print_config", "dry_run")
    ):
        parser.error("--json shows a result: it goes without --print-config and --dry-run")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


class Parser(argparse.ArgumentParser):
    """A parser whose complaint about a command line can be read from the exception, for `--json`."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and leave."""
        try:
            super().error(message)
        except SystemExit as left:
            raise UnreadableCommand(left.code, message) from None


class UnreadableCommand(SystemExit):
    """A command line that cannot be read, with argparse's message."""

    def __init__(self, code: int | str | None, message: str) -> None:
        super().__init__(code)
        self.message = message


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = Parser(prog="harness", description=sys.modules["harness"].__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Run, help_text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(run=run)
        return command

    _add_configured_commands(add)
    sweeps.add_worker_options(add("worker", sweeps.run_worker, "work on a sweep that was begun elsewhere"))
    sweeps.add_next_options(add("next", sweeps.run_next, "what could be done next with a sweep, and why"))
    sweeps.add_replicate_options(
        add("replicate", sweeps.run_replicate, "train a sweep's best configurations again with fresh seeds")
    )
    recorded.add_record_commands(add)
    predict = add("predict", run_predict, "classify image files with an exported bundle")
    predict.add_argument("bundle", type=Path, help="exports/<name>")
    predict.add_argument("images", nargs="+", type=Path, help="files, or folders of them")
    predict.add_argument("--top", type=int, default=3, help="classes to show")
    predict.add_argument("--int8", action="store_true", help="by the bundle's quantised model")
    doctor = add("doctor", run_doctor, "print what this machine has and what `auto` means on it")
    add_mlruns(doctor)
    add_json(doctor)
    return parser


def _add_configured_commands(add: AddCommand) -> None:
    """Add the commands that take a configuration."""
    sweep = add(
        "sweep", sweeps.run_sweep, "search a space of configurations; repeat it to go on; `list` lists them"
    )
    train = add("train", run_train, "train one configuration")
    folds = add(
        "cross-validate",
        run_cross_validate,
        "train one configuration once for each of data.folds=5 folds; repeat it to go on",
    )
    data = add("data", run_data, "print what a data set holds and draw samples of it")
    curve = add("lr-curve", run_lr_curve, "draw the learning rate of every step of a run; train nothing")
    curve.add_argument("--output", type=Path, default=Path("reports/lr-curve.png"), help="for the picture")
    find = add("lr-find", run_lr_find, "train a few steps with a rising learning rate, and suggest one")
    find.add_argument("--low", type=float, default=1e-6, help="the first rate of optim.lr (default: 1e-6)")
    find.add_argument("--high", type=float, default=10.0, help="the last one (default: 10)")
    find.add_argument("--steps", type=int, default=100, help="optimiser steps (default: 100)")
    find.add_argument("--output", type=Path, default=Path("reports/lr-find.png"), help="for the picture")
    for command in (sweep, train, folds, data, curve, find):
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="model=lenet optim.lr=3e-4 …")
        command.add_argument("--config-dir", type=Path, help="another folder of config groups")
    for command in (sweep, train):
        command.add_argument("--print-config", action="store_true", help="show each value and its origin")
        command.add_argument("--dry-run", action="store_true", help="check and describe; train nothing")
    sweeps.add_sweep_options(sweep)
    train.add_argument("--resume", metavar="RUN", help="go on with a run, as it was configured")
    add_mlruns(train)
    add_mlruns(folds)
    for command in (train, folds, data, curve, find):
        add_json(command)
    data.add_argument("--output", type=Path, default=Path("reports/data"), help="for the pictures")
    data.add_argument("--features", action="store_true", help="list the cached features instead")
    data.add_argument("--clear", action="store_true", help="with --features: remove them")


# ── commands ──────────────────────────────────────────────────────────────────────────────────────


def run_train(options: argparse.Namespace) -> int | Document:
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
        from harness.training.commands.dry_run import describe_run

        print(describe_run(config))
        return EXIT_OK
    from harness.training.command import run_training

    return _trained(*run_training(config))


def _resume_train(options: argparse.Namespace) -> Document:
    if options.print_config or options.dry_run:
        raise ConfigError("--resume goes on with the run as it was configured: give no other option")
    from harness.training.commands.resume_run import resume_training

    return _trained(*resume_training(tracking_config(options), options.resume, options.overrides))


def _trained(code: int, result: RunResult | None) -> Document:
    """Return a run's result, which is missing if the processes that trained it together were killed."""
    if result is None:
        why = f"the processes that train together ended with exit code {code}"
        return documents.of_error("HarnessError", why, code)
    return documents.of_run(result, code)


def run_cross_validate(options: argparse.Namespace) -> Document:
    from harness.config.compose import compose_run
    from harness.training.commands.cross_validate import cross_validate

    overrides = [*options.overrides, *place_overrides(options)]
    found = cross_validate(compose_run(overrides, **config_dir(options)))
    if found is None:
        return documents.of_error("Interrupted", INTERRUPTED, EXIT_INTERRUPTED)
    print(found)
    return documents.of_cross_validation(found)


def run_data(options: argparse.Namespace) -> Document:
    from harness.config.compose import compose_run
    from harness.data.features.cache import list_features
    from harness.data.summary import summarise, summarise_features

    config = compose_run(options.overrides, **config_dir(options))
    if options.clear and not options.features:
        raise ConfigError("--clear removes cached features: say --features --clear")
    if options.features:
        entries = list_features(Path(config.data.cache_dir))
        print(summarise_features(config.data, clear=options.clear))
        return documents.of_features(entries, options.clear)
    # No batches are made here, so a data set that is smaller than a batch can be described as well.
    data = config.data.model_copy(update={"batch_size": 1})
    summary = summarise(data, options.output, augment=config.augment)
    print(summary)
    return documents.of_data(summary)


def run_lr_curve(options: argparse.Namespace) -> Document:
    from harness.analysis.figures import save_figure
    from harness.config.compose import compose_run
    from harness.training.commands.lr_curve import rate_figure, trace_rates

    curve = trace_rates(compose_run(options.overrides, **config_dir(options)))
    print(curve)
    path = save_figure(rate_figure(curve), options.output)
    print(f"written: {path}")
    return documents.of_rates(curve, path)


def run_lr_find(options: argparse.Namespace) -> Document:
    from harness.analysis.figures import save_figure
    from harness.config.compose import compose_run
    from harness.training.commands.lr_find import find_rate, rate_test_figure

    config = compose_run(options.overrides, **config_dir(options))
    test = find_rate(config, options.low, options.high, options.steps)
    print(test)
    path = save_figure(rate_test_figure(test), options.output)
    print(f"written: {path}")
    return documents.of_rate_test(test, path)


def run_predict(options: argparse.Namespace) -> int:
    from harness.export import predict_files

    result = predict_files(options.bundle, options.images, top_k=options.top, int8=options.int8)
    print(result)
    return EXIT_USAGE if result.failed else EXIT_OK


def run_doctor(options: argparse.Namespace) -> Document:
    from harness.training.commands.doctor import diagnose

    facts = diagnose(tracking_config(options), Path(os.environ.get("DATA_DIR", "data")))
    print("\n".join(f"{name:<18} {fact}" for name, fact in facts.items()))
    return documents.of_machine(facts)
