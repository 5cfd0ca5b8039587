"""The images that set two models apart, and what a comparison's page says of them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from harness.analysis.charts import MOST_CLASSES, classes_chart
from harness.analysis.discordant import (
    MOST_SHOWN,
    SIDE_PX,
    Discordant,
    Side,
    discordant_images,
    image_sections,
    image_source,
)
from harness.analysis.page import Part, render_page
from harness.analysis.paired import compare_images
from harness.analysis.predictions import Predictions, predictions_of
from harness.errors import DataError

CLASSES = ("cat", "dog", "bird")


def answers(
    predicted: Sequence[int], labels: Sequence[int], sure: Sequence[float] | None = None
) -> Predictions:
    """Return answers with a logit of `sure` for the predicted class; the images are rows 10, 11, … of it."""
    logits = np.eye(len(CLASSES))[np.asarray(predicted)] * np.asarray(sure or [3.0] * len(labels))[:, None]
    index = 10 + np.arange(len(labels))
    return predictions_of(logits, np.asarray(labels), split="val", class_names=CLASSES, index_N=index)


def grey(places: np.ndarray) -> np.ndarray:
    """Images whose grey level is their place."""
    return np.repeat(places.astype(np.uint8), 4 * 4 * 3).reshape(-1, 4, 4, 3)


def levels(part: Part) -> list[int]:
    """Return the grey levels of the shown images, which are their places."""
    shown = [base64.b64decode(picture.source.partition("base64,")[2]) for picture in part.pictures]
    return [int(np.asarray(Image.open(io.BytesIO(image)))[0, 0, 0]) for image in shown]


def test_two_models_worked_by_hand() -> None:
    labels = [0, 0, 0, 1, 1]
    first = Side("first", (answers([0, 0, 1, 1, 2], labels, [1.0, 5.0, 3.0, 3.0, 3.0]),))
    second = Side("second", (answers([1, 2, 0, 1, 0], labels),))
    assert discordant_images(first, second).tolist() == [1, 0]  # of the surer answer first
    forth, back = Discordant(first, second, grey).sections()
    assert forth.title == "Images that first gets right and second wrong"
    assert forth.sentences[0].startswith("2 of 5 images.")
    assert levels(forth) == [1, 0]
    assert [picture.name for picture in forth.pictures] == ["image 11", "image 10"]
    assert forth.pictures[0].lines == (
        ("true", "cat"),
        ("right", "✓ 99\N{NO-BREAK SPACE}% cat"),
        ("wrong", "✗ 91\N{NO-BREAK SPACE}% bird"),
    )
    assert levels(back) == [2]


def test_of_configurations_every_seed_must_agree() -> None:
    labels = [0, 0, 0]
    first = Side("lr=1", (answers([0, 0, 0], labels), answers([0, 0, 1], labels), answers([0, 0, 0], labels)))
    second = Side("lr=2", (answers([1, 0, 1], labels), answers([2, 1, 1], labels)))
    assert discordant_images(first, second).tolist() == [0]  # of image 1 a second run, of 2 a first one
    forth, back = Discordant(first, second, grey).sections()
    assert forth.title == "Images that each of 3 seeds of lr=1 gets right and each of 2 seeds of lr=2 wrong"
    assert forth.pictures[0].lines[1:] == (("right", "✓ 3/3 cat"), ("wrong", "✗ 1/2 dog, 1/2 bird"))
    assert back.sentences == ["There is none among the 3 images."]


def test_more_images_than_are_shown_are_counted() -> None:
    count = MOST_SHOWN + 11
    first, second = (Side(name, (answers([k] * count, [0] * count),)) for k, name in enumerate("ab"))
    part = Discordant(first, second, grey).sections()[0]
    assert len(part.pictures) == MOST_SHOWN
    assert f"35 of 35 images. {MOST_SHOWN} are shown, 11 left out." in part.sentences[0]


def test_images_that_are_gone_cost_one_line_and_nothing_else() -> None:
    def gone(places: np.ndarray) -> np.ndarray:
        raise DataError("no such folder")

    first, second = answers([0, 0, 1], [0, 0, 1]), answers([0, 1, 2], [0, 0, 1])
    images = compare_images({"a": first, "b": second})
    assert images is not None
    discordant = Discordant(Side("a", (first,)), Side("b", (second,)), gone)
    parts = image_sections(images, discordant)
    assert [part.sentences for part in parts if "cannot be shown" in str(part.sentences)] == [
        ["The images cannot be shown: no such folder"]
    ]
    assert [row[0] for row in parts[-1].rows] == ["11", "12"]
    assert parts[1].figure is not None
    assert "no such folder" in render_page("t", "a", parts)


def test_names_of_classes_are_text_and_large_images_are_reduced() -> None:
    source = image_source(np.zeros((900, 600, 3), np.uint8))
    assert max(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).size) == 2 * SIDE_PX
    first, second = (
        predictions_of(
            np.eye(2)[[k, k]], np.array([0, 0]), split="val", class_names=["<img src=x>", 'a" onload="x']
        )
        for k in (0, 1)
    )
    discordant = Discordant(Side("<b>", (first,)), Side("b", (second,)), grey)
    page = render_page("t", "a", discordant.sections())
    assert not re.search(r"<img src=x>|<b>|\" onload", page)


@pytest.mark.parametrize("num_classes", [2, 1000])
def test_the_classes_that_differ_most_are_drawn_and_the_others_counted(num_classes: int) -> None:
    labels = np.repeat(np.arange(num_classes), 2)
    names = [f"class {number}" for number in range(num_classes)]
    right, leads = np.eye(num_classes)[labels], labels % 7 == 1
    first = right.copy()
    first[(labels % 7 == 0) & (np.arange(len(labels)) % 2 == 1)] = 0  # there the second leads by a half
    second = right.copy()
    second[leads] = np.roll(right, 1, axis=1)[leads]  # there the first leads by all
    made = {
        name: predictions_of(logits, labels, split="val", class_names=names)
        for name, logits in (("a", first), ("b", second))
    }
    images = compare_images(made)
    assert images is not None
    part = image_sections(images, None)[1]
    best = next(iter(images.predictions))
    assert part.figure is not None
    shown = part.figure["layout"]["yaxis"]["categoryarray"]
    assert len(shown) == min(num_classes, MOST_CLASSES)
    assert ("970 others are left out" in part.sentences[0]) == (num_classes == 1000)
    if num_classes == 2:
        assert shown == [
            "class 0",
            "class 1",
        ]  # from the bottom: where the second leads, where the first does
    assert best == "a"


def test_a_class_without_images_is_not_drawn_but_said() -> None:
    images = compare_images({"a": answers([0, 1], [0, 1]), "b": answers([1, 1], [0, 1])})
    assert images is not None
    part = image_sections(images, None)[1]
    assert "1 classes have none of the images." in part.sentences[0]
    assert classes_chart(CLASSES, {n: p.class_accuracies for n, p in images.predictions.items()})["layout"][
        "yaxis"
    ]["categoryarray"] == ["dog", "cat"]
