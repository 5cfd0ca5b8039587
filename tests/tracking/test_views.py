from __future__ import annotations

import base64
import json
import zlib
from typing import Any
from urllib.parse import parse_qs

import pytest
from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

from harness.tracking import names
from harness.tracking.store import RunStore
from harness.tracking.views import VIEW_TAG, sweep_view, trials_page

TAGS = {names.SWEEP: "s", names.METRIC: "val/loss", names.DIRECTION: "minimize"}


def state_of(value: str) -> dict[str, Any]:
    """Unpack a saved view as MLflow's page does."""
    packed = json.loads(value)["state"].removeprefix("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def test_a_view_sorts_the_trials_of_its_sweep_by_the_sweeps_own_metric() -> None:
    _, value = sweep_view("abc", TAGS, ["optim.lr"])
    state = state_of(value)
    assert state["searchFilter"] == "tags.`mlflow.parentRunId` = 'abc'"
    assert (state["orderByKey"], state["orderByAsc"]) == (state["selectedColumns"][0], True)
    assert "val/loss" in state["orderByKey"]
    assert "params.`optim.lr`" in state["selectedColumns"]
    assert not state_of(sweep_view("abc", {**TAGS, names.DIRECTION: "maximize"}, [])[1])["orderByAsc"]


def test_the_address_of_the_trials_opens_the_view_that_the_sweep_keeps() -> None:
    name, _ = sweep_view("abc", TAGS, [])
    query = parse_qs(trials_page("abc", TAGS))
    assert query["viewStateShareKey"] == [name.removeprefix(VIEW_TAG)]
    assert query["workflowType"] == ["machine_learning"]


def test_the_charts_are_scores_as_bars_curves_as_lines_and_images_without_settings() -> None:
    state = state_of(sweep_view("abc", TAGS, ["optim.lr", "finetune"])[1])
    sections = {section["uuid"]: section for section in state["compareRunSections"]}
    cards = state["compareRunCharts"]
    assert len({card["uuid"] for card in cards}) == len(cards)
    assert all(sections[card["metricSectionId"]]["display"] for card in cards)
    kind_of = {card.get("metricKey"): card["type"] for card in cards}
    assert kind_of["best/val/loss"] == "BAR"  # the sweep's metric, once, though it is also one of the others
    assert [card["type"] for card in cards if card.get("metricKey", "").startswith("best/")] == ["BAR"] * 2
    assert kind_of["val/loss"] == "LINE"
    assert not any(card["isGenerated"] for card in cards)  # MLflow turns bars of its own into lines
    images = [card for card in cards if card["type"] == "IMAGE"]
    assert images[0]["imageKeys"] == ["pictures/val/examples"]
    assert not any(card["showRunParams"] for card in images)
    (parallel,) = (card for card in cards if card["type"] == "PARALLEL")
    assert "finetune.kind" in parallel["selectedParams"]
    assert not sections["best/val"]["display"]  # where MLflow puts all other scores
    assert state["isAccordionReordered"]


def test_a_view_is_small_enough_for_a_tag() -> None:
    _, value = sweep_view("abc", TAGS, [f"section_{n}.setting_{n * n}" for n in range(40)])
    assert len(value) <= MAX_EXPERIMENT_TAG_VAL_LENGTH


def test_trials_of_a_sweep_without_a_view_are_sorted_by_the_address() -> None:
    query = parse_qs(trials_page("abc", {names.SWEEP: "s"}))
    assert query["searchFilter"] == ["tags.`mlflow.parentRunId` = 'abc'"]
    assert query["orderByAsc"] == ["false"]
    assert "val/accuracy" in query["orderByKey"][0]


def test_the_store_keeps_a_view(store: RunStore) -> None:
    store.keep_view("exp", sweep_view("abc", TAGS, ["optim.lr"]))
    store.keep_view("exp", sweep_view("abc", TAGS, ["optim.lr"]))  # the same again: one view
    tags = store.client.get_experiment(store.experiment_id("exp")).tags
    views = [value for name, value in tags.items() if name.startswith(VIEW_TAG)]
    assert len(views) == 1
    assert state_of(views[0])["orderByAsc"]


def test_a_store_that_keeps_no_view_stops_nobody(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("away")

    monkeypatch.setattr(store.client, "set_experiment_tag", refuse)
    store.keep_view("exp", ("name", "value"))
    assert "keeps no view" in caplog.text


def test_a_group_has_the_column_that_its_runs_record() -> None:
    columns = state_of(sweep_view("abc", TAGS, ["finetune", "optim.lr"])[1])["selectedColumns"]
    assert {"params.`finetune.kind`", "params.`optim.lr`"} < set(columns)
    assert "params.`optim.lr.kind`" not in columns
