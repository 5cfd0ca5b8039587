"""The HTML report of a sweep."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import re
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from harness.cli.main import main
from harness.config.as_command import TrialOverrides
from harness.config.compose import SweepPlan, compose_run, compose_sweep
from harness.config.schema import TrackingConfig
from harness.search.report.costs import cost_lines, images_seen
from harness.search.report.description import describe_in_markdown, describe_trial
from harness.search.report.findings import Finding
from harness.search.report.html import settings_charts
from harness.search.report.html.page import SweepFacts, render
from harness.search.report.html.timeline import lanes_of, spans_of
from harness.search.report.leaderboard import importances_of, leaderboard_csv, leaderboard_table
from harness.search.report.verdict import judge
from harness.search.study import keys
from harness.search.study.trials import read_rows
from harness.search.suggest.samplers import distribution_of
from harness.tracking import names
from harness.tracking.runs import get_run
from tests.search.conftest import SmallSweep
from tests.search.helpers.calls import calls_of, kill, wait_for
from tests.search.test_audit import settings, trial

HOSTILE = "<script>alert('x')</script>"
BEGAN = datetime(2026, 1, 1, 12)
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
SPACE = (
    "sweep.space={optim.lr: {type: float, low: 0.001, high: 0.1, log: true}, "
    "data.batch_size: {type: choice, values: [64, 128]}}"
)


def plan_of(*overrides: str) -> SweepPlan:
    return compose_sweep(["data=digits", "model=lenet", "finetune=full", "augment=none", *overrides])


def study_of(plan: SweepPlan, trials: Sequence[dict[str, Any]], name: str = "mine") -> optuna.Study:
    """Return a study in memory with these trials: params, state, values, user attributes."""
    second = plan.sweep.second_objective
    directions = [plan.sweep.direction, *([second.direction] if second else [])]
    study = optuna.create_study(directions=directions, study_name=name)
    distributions = {path: distribution_of(dimension) for path, dimension in plan.sweep.space.items()}
    for number, facts in enumerate(trials):
        values = facts.get("values")
        params = facts.get("params", {"optim.lr": 0.01, "data.batch_size": 64})
        made = create_trial(
            state=STATES[facts.get("state", "complete")],
            values=values,
            params=params,
            distributions={path: distributions[path] for path in params},
            intermediate_values=facts.get("scores", {1: 0.4, 2: 0.5}),
            user_attrs={keys.SECONDS: 60.0, keys.MAX_EPOCHS: 2, **facts.get("attrs", {})},
        )
        made.datetime_start = BEGAN + timedelta(minutes=number)
        made.datetime_complete = BEGAN + timedelta(minutes=number + 1)
        study.add_trial(made)
    return study


def report_of(plan: SweepPlan, study: optuna.Study, **more: Any) -> str:
    rows = read_rows(study)
    facts = SweepFacts(
        plan=plan,
        study=study,
        rows=rows,
        verdict=judge(rows, plan.sweep),
        findings=more.get("findings", ()),
        command=more.get("command", "harness sweep"),
        best_command=more.get("best_command"),
        importances=importances_of(study),
        num_train=1000,
        test=None,
    )
    return render(facts)


class Page(html.parser.HTMLParser):
    """Collects what a browser would make of a page, but for the scripts' contents."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br", "wbr", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
        if not self.open or self.open[-1] not in ("script", "style"):
            self.texts.append(data)


def test_the_page_says_what_was_found_and_loads_nothing() -> None:
    plan = plan_of(SPACE, "sweep.num_trials=8")
    trials: list[dict[str, Any]] = [
        {"values": [0.5 + n / 100], "params": {"optim.lr": 0.002 * (n + 1), "data.batch_size": 64}}
        for n in range(7)
    ]
    trials.append({"state": "pruned", "scores": {1: 0.2}})
    finding = Finding("edge", "the winner is at an edge", "harness sweep --extend x=1")
    text = report_of(plan, study_of(plan, trials), findings=[finding], best_command="harness train a=1")
    page = Page(text)

    assert page.loaded == []
    assert page.open == []
    assert text.count("plotly.js v") == 1
    assert "Content-Security-Policy" in text
    said = " ".join(" ".join(page.texts).split())
    for words in (
        "trial 6",
        "0.5600",
        "harness train a=1",
        "at an edge",
        "--extend x=1",
        "8 of 8",
        "behind the other",
    ):
        assert words in said
    for title in ("Optimisation history", "Parallel coordinates", "Score by setting", "Learning curves",
                  "Importance of the settings", "The two most important settings", "Timeline of the slots",
                  "Leaderboard", "Pruned, infeasible, failed", "Costs"):  # fmt: skip
        assert title in page.headings
    assert "What a better score costs" not in page.headings  # it has one objective


@pytest.mark.parametrize("states", [[], ["pruned"], ["failed"], ["complete"], ["complete"] * 2])
def test_a_sweep_of_few_trials_has_a_report(states: list[str]) -> None:
    plan = plan_of(SPACE)
    trials = [{"state": state, "values": [0.5] if state == "complete" else None} for state in states]
    page = Page(report_of(plan, study_of(plan, trials)))
    said = " ".join(page.texts)
    assert ("no trial is complete" in said) == ("complete" not in states)
    assert page.open == []


def test_names_and_reasons_are_texts_not_markup() -> None:
    many = [HOSTILE, *(f"a-very-long-name-that-is-cut-somewhere-{n}" for n in range(999))]
    space = {
        "optim.lr": {"type": "float", "low": 0.001, "high": 0.1},
        "seed": {"type": "choice", "values": many},
    }
    plan = plan_of()
    plan = replace(plan, sweep=type(plan.sweep)(**{"space": space, "num_trials": 12}))  # type: ignore[arg-type]
    params = [{"optim.lr": 0.01 + n / 1000, "seed": many[n % 1000]} for n in range(12)]
    trials: list[dict[str, Any]] = [{"values": [0.5 + n / 100], "params": p} for n, p in enumerate(params)]
    trials.append({"state": "failed", "params": params[0], "attrs": {keys.REASON: f"{HOSTILE} & more"}})
    text = report_of(plan, study_of(plan, trials, name=f"my {HOSTILE}"), command=f"harness sweep {HOSTILE}")
    page = Page(text)

    assert "<script>alert" not in text
    assert page.open == []
    assert f"my {HOSTILE}" in " ".join(page.texts)
    assert f"{HOSTILE} & more" in " ".join(page.texts)
    labels = settings_charts._names(plan.sweep.space["seed"])  # type: ignore[arg-type]
    assert len(set(labels.values())) == 1000


def test_the_accuracy_without_test_time_augmentation_stands_beside_the_score() -> None:
    plan = plan_of(SPACE)
    again = {keys.PLAIN_ACCURACY: 0.375, keys.REPLICATE_OF: 1, keys.SEED: 7}
    trials = [
        {"values": [0.5], "attrs": {keys.PLAIN_ACCURACY: 0.25}},
        {"values": [0.75], "attrs": {keys.PLAIN_ACCURACY: 0.625}},
        {"values": [0.7], "attrs": again},
    ]
    study = study_of(plan, trials)
    rows = read_rows(study)
    verdict = judge(rows, plan.sweep)
    note = "without test-time augmentation, trial 1 has val/accuracy 0.6250, its replicates 0.3750 (n = 1)"
    assert verdict.notes[0] == note

    output = io.StringIO()
    Console(file=output, width=100).print(leaderboard_table(rows, plan.sweep, verdict))
    texts = Page(report_of(plan, study)).texts
    description = describe_in_markdown(plan, rows, verdict, "harness sweep", "abc")
    for shown in (output.getvalue(), " ".join(texts), description):
        assert "0.6250" in shown
        assert "0.2500" in shown
    assert note in texts
    table = list(csv.DictReader(io.StringIO(leaderboard_csv(rows, plan.sweep, verdict))))
    assert [line["val/accuracy_no_tta"] for line in table] == ["0.625", "0.25", "0.375"]
    assert "; without test-time augmentation val/accuracy 0.6250" in describe_trial(rows[1], plan, "x", None)


def test_two_objectives_have_a_front() -> None:
    two = ["sweep.second_objective={metric: latency_ms}", "sweep.replicate.seeds=0"]
    plan = plan_of(SPACE, *two, "sweep.constraints=['latency_ms <= 9']")
    trials = [
        {"values": [0.5 + n / 100, n + 1.0], "attrs": {keys.COSTS: {"latency_ms": n + 1.0}}} for n in range(6)
    ]
    page = Page(report_of(plan, study_of(plan, trials)))
    assert "What a better score costs" in page.headings
    assert any("front" in text for text in page.texts)


def test_five_hundred_trials_take_seconds() -> None:
    plan = plan_of(SPACE, "sweep.num_trials=500")
    trials = [
        {
            "values": [n / 1000],
            "params": {"optim.lr": 0.001 + n / 5100, "data.batch_size": (64, 128)[n % 2]},
            "scores": {step: step / 100 for step in range(1, 11)},
        }
        for n in range(500)
    ]
    study = study_of(plan, trials)
    began = time.process_time()
    page = Page(report_of(plan, study))
    assert time.process_time() - began < 30  # about two on an idle core
    assert "and 400 more, in leaderboard.csv" in " ".join(page.texts)


def test_a_conditional_setting_is_shown_for_the_trials_that_have_it() -> None:
    rows = [
        trial(0, 0.5, settings()),
        trial(1, 0.7, settings("partial", groups=2)),
        trial(2, 0.6, settings("full")),
    ]
    sweep = compose_sweep(["data=digits"]).sweep
    paths = settings_charts.shown_settings(rows, sweep, None)
    figure = settings_charts.parallel(rows, sweep, paths)
    sliced = settings_charts.slices(rows, sweep, paths)

    assert figure is not None
    assert sliced is not None
    axes = {axis.label: axis for axis in figure.data[0].dimensions}
    groups = axes["trainable_groups"]
    assert groups.ticktext[0] == settings_charts.ABSENT
    assert [value < 1 for value in groups.values] == [True, False, True]
    assert len(axes["lr"].values) == 3  # no trial is left out for what it does not have
    assert settings_charts.ABSENT not in axes["lr"].ticktext
    assert any("trainable_groups (in 1 of 3)" in note.text for note in sliced.layout.annotations)


# ── the slots ─────────────────────────────────────────────────────────────────────────────────────


def attempts(
    number: int, *spans: tuple[float, float | None], end: float | None, host: str = "a"
) -> FrozenTrial:
    known = {
        str(place): {"begin": begin, "host": host, **({} if stop is None else {"end": stop})}
        for place, (begin, stop) in enumerate(spans, start=1)
    }
    made = create_trial(
        state=TrialState.RUNNING if end is None else TrialState.COMPLETE,
        value=None if end is None else 0.5,
        user_attrs={keys.SPANS: known},
    )
    made.number = number
    made.datetime_complete = None if end is None else datetime.fromtimestamp(end)
    return made


def test_every_attempt_has_a_bar_in_the_first_slot_that_is_free() -> None:
    trials = [
        attempts(0, (0, 10), (20, None), end=30),  # stopped, then resumed
        attempts(1, (1, None), (12, None), end=18),  # killed: when is not known
        attempts(2, (2, None), end=None, host="b"),  # still runs
    ]
    spans = spans_of(trials, now=50)
    lanes = {(span.number, span.attempt): lane for span, lane in lanes_of(spans).items()}

    assert [(s.number, s.attempt, s.begin, s.end, s.is_end_known) for s in spans] == [
        (0, 1, 0, 10, True),
        (1, 1, 1, 12, False),
        (2, 1, 2, 50, False),
        (1, 2, 12, 18, True),
        (0, 2, 20, 30, True),
    ]
    assert lanes == {(0, 1): ("a", 0), (1, 1): ("a", 1), (2, 1): ("b", 0), (1, 2): ("a", 0), (0, 2): ("a", 0)}


def test_an_attempt_that_was_stopped_keeps_its_beginning(small_sweep: SmallSweep) -> None:
    small_sweep.behave(slow=[0])
    with calls_of(small_sweep) as calls:
        call = calls.start("sweep.num_trials=1")
        wait_for(lambda: any(line.startswith("epoch") for line in small_sweep.account(0)), call)
        kill(call.process.pid, signal.SIGTERM)
        assert call.wait() == 143, call.output

    (attempt,) = small_sweep.study().trials[0].user_attrs[keys.SPANS].values()
    assert attempt["begin"] < attempt["end"]


# ── costs, and the command of the best ────────────────────────────────────────────────────────────


def test_images_are_counted_by_what_each_arm_sees() -> None:
    rule = "sweep.rules=[{when: {finetune: full}, overrides: ['data.max_train_samples=2000']}]"
    plan = compose_sweep(["data=digits", "trainer.max_epochs=4", "sweep.compute_per_trial=null", rule])
    rows = [trial(0, 0.5, settings(), epochs_done=4), trial(1, 0.5, settings("full"), epochs_done=3)]
    assert images_seen(plan, rows, 5000) == 4 * 5000 + 3 * 2000
    assert images_seen(plan, rows, None) is None
    told = dict(cost_lines(plan, [replace(row, costs={"train_images": 7.0}) for row in rows], None))
    assert told["training images, repeats included"] == "14"


@pytest.mark.parametrize("finetune", ["linear_probe", "partial", "full"])
def test_the_best_trials_command_composes_its_configuration(finetune: str) -> None:
    plan = compose_sweep(["data=digits", "trainer.max_epochs=3", "augment=strong"])
    overrides = TrialOverrides(plan).of(settings(finetune, groups=2), seed=7, threads=2)
    assert overrides is not None
    config = compose_run(overrides)
    trial_config = plan.compose_trial(settings(finetune, groups=2))
    assert config.seed == 7
    assert config.trainer.threads == 2
    threads = config.trainer.model_copy(update={"threads": None})
    assert config.model_copy(update={"seed": trial_config.seed, "trainer": threads}) == trial_config


# ── the commands ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_sweep_writes_its_report_and_it_can_be_written_again(
    small_sweep: SmallSweep, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small_sweep.run("sweep.num_trials=1")
    path = small_sweep.runs / "sweeps" / "small" / "report.html"
    artifacts = list(small_sweep.runs.glob("artifacts/**/report.html"))
    assert f"report: {path}" in small_sweep.output.getvalue()
    assert len(artifacts) == 1
    assert artifacts[0].read_text() == path.read_text()
    parent = get_run(TrackingConfig(dir=str(small_sweep.runs)), "small")
    (row,) = small_sweep.rows()
    assert parent.metrics[names.DEVICE_HOURS] == pytest.approx((row.seconds or 0.0) / 3600)
    (attempt,) = small_sweep.study().trials[0].user_attrs[keys.SPANS].values()
    assert attempt["begin"] < time.time()

    for file in (path, *artifacts):
        file.unlink()
    again = [
        "sweep",
        "--report",
        "small",
        "--mlruns",
        str(small_sweep.runs),
        "--config-dir",
        str(small_sweep.configs),
    ]
    assert main(again) == 0
    assert str(path) in capsys.readouterr().out
    assert path.is_file()
    assert artifacts[0].is_file()

    elsewhere = tmp_path / "elsewhere"  # the runs and their artifacts are gone, the sweep's database is not
    elsewhere.mkdir()
    shutil.copy(small_sweep.runs / "optuna.db", elsewhere)
    assert main([*again, "--mlruns", str(elsewhere)]) == 0
    assert "note: it is in this file alone, as there is no run store in" in capsys.readouterr().out
    assert (elsewhere / "sweeps" / "small" / "report.html").is_file()
    assert main([*again, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(path)
    assert main(["sweep", "--report", "smal", *again[3:]]) == 2
    assert "no sweep 'smal'; did you mean 'small'" in capsys.readouterr().err


def test_a_chart_that_fails_does_not_lose_the_results(
    small_sweep: SmallSweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("harness.search.report.html.charts.history", fail)
    result = small_sweep.run("sweep.num_trials=1")
    written = json.loads((small_sweep.runs / "sweeps" / "small" / "sweep.json").read_text())
    assert result.outcome == "complete"
    assert written["status"] == "FINISHED"
    assert "report.html is not written: ZeroDivisionError: a bug" in caplog.text


def test_the_template_is_part_of_the_package() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert re.search(r"^\[tool\.setuptools\.package-data\]\nharness = .*jinja", project, re.MULTILINE)
