"""`compare.html` shows the images of recorded runs that one gets right and the other wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.analysis.compare import compare_runs
from harness.analysis.predictions import predictions_of, to_bytes
from harness.config.compose import compose_run
from harness.config.schema import RunConfig, TrackingConfig
from harness.data import load_splits
from harness.data.splits import ImageArrays
from harness.tracking import names
from harness.tracking.store import RunStore


def record(store: RunStore, config: RunConfig, val: ImageArrays, name: str, wrong: int, seed: int) -> str:
    """Record a run that answers all validation images rightly but for the first few."""
    predicted = val.labels.copy()
    predicted[:wrong] = (predicted[:wrong] + 1) % 10
    made = predictions_of(
        np.eye(10)[predicted],
        val.labels,
        split="val",
        class_names=list("0123456789"),
        digest=val.digest,
        index_N=val.indices,
    )
    tracker = store.start_run(name, "digits", {})
    tracker.log_params({"model": name, "seed": seed})
    tracker.log_text(yaml.safe_dump(config.to_dict()), names.CONFIG_FILE)
    tracker.log_bytes(to_bytes(made), names.PREDICTIONS.format(split="val"))
    tracker.log_summary({"val/accuracy": float(made.correct.mean())})
    tracker.finish("FINISHED")
    return tracker.run_id


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_the_page_shows_the_images(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path, num_seeds: int
) -> None:
    config = compose_run(["data=digits", f"data.cache_dir={tmp_path}", "model=lenet"])
    val = load_splits(config.data).val
    for seed in range(num_seeds):
        for name, wrong in (("good", 2), ("poor", 5)):
            record(store, config, val, name, wrong, seed)
    page = compare_runs(tracking, filter="metrics.`val/accuracy` > 0").to_html()
    assert page.count('<img src="data:image/png;base64') == 3  # images 2, 3 and 4
    assert [f"image {val.indices[place]}" in page for place in range(5)] == [False, False, True, True, True]
    assert "There is none among the 144 images." in page
    who = "model=good" if num_seeds > 1 else "good"
    assert (f"each of 2 seeds of {who} gets right" in page) == (num_seeds > 1)


def test_other_images_than_those_of_the_runs_are_not_shown(
    store: RunStore, tracking: TrackingConfig, tmp_path: Path
) -> None:
    config = compose_run(["data=digits", f"data.cache_dir={tmp_path}", "model=lenet"])
    val = load_splits(config.data).val
    for name, wrong in (("good", 2), ("poor", 5)):
        other = config.model_copy(update={"data": config.data.model_copy(update={"split_seed": 7})})
        record(store, other, val, name, wrong, 0)
    page = compare_runs(tracking, filter="metrics.`val/accuracy` > 0").to_html()
    assert "The images cannot be shown: the validation images of digits in" in page
    assert "<img" not in page.partition("</script>")[2]
    assert "right where the other is wrong on 3" in page
