from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from harness.analysis.layout import percent
from harness.analysis.predictions import predictions_of
from harness.pictures.galleries import (
    best_and_worst_gallery,
    confident_mistakes_gallery,
    examples_gallery,
    highest_loss_gallery,
    label_errors_gallery,
)
from harness.pictures.tiles import Tile, fitted, tiles_figure, width_of
from tests.helpers.drawing import drawn
from tests.pictures.conftest import assert_no_overlap, gather, note_of, some_predictions, texts_of

ALL = [highest_loss_gallery, confident_mistakes_gallery, best_and_worst_gallery, label_errors_gallery]


def test_a_tile_is_titled_with_truth_prediction_and_probability() -> None:
    logits = np.log([[0.25, 0.75], [0.9, 0.1]])
    predictions = predictions_of(logits, np.array([0, 0]), split="val", class_names=["cat", "dog"])
    texts = texts_of(highest_loss_gallery(predictions, gather))
    assert {"cat", "→ dog (75 %)", "→ cat (90 %)"} <= set(texts)


def test_the_image_of_the_highest_loss_comes_first() -> None:
    predictions = some_predictions()
    picture = drawn(highest_loss_gallery(predictions, gather))
    assert (picture[100:200, 20:130] == int(predictions.loss.argmax())).all()


def test_the_examples_that_are_predicted_wrong_are_framed() -> None:
    predictions = predictions_of(np.eye(2)[[0, 1]], np.array([0, 0]), split="val", class_names=["cat", "dog"])
    picture = drawn(
        examples_gallery(predictions, lambda places: np.zeros((len(places), 128, 128, 3), np.uint8))
    )
    orange = (picture == [0xB3, 0x47, 0x00]).all(axis=2)
    frame = 133 * 2 * 5 * 2  # of the second image: four sides of 133 by 5 pixels
    assert not orange[:, :150].any()
    assert orange.sum() == pytest.approx(frame, rel=0.1)  # and the letters above it


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_no_text_overlaps_from_2_to_1000_classes(draw: Callable[..., Figure], num_classes: int) -> None:
    plain = some_predictions(num_classes, max(300, 2 * num_classes))
    class_names = [f"a rather long name of a class {number}" for number in range(num_classes)]
    predictions = predictions_of(plain.logits, plain.labels, split="val", class_names=class_names)
    figure = draw(predictions, gather)
    assert_no_overlap(figure)
    assert max(drawn(figure).shape) < 2200


def test_the_cap_on_classes_is_said() -> None:
    note = note_of(best_and_worst_gallery(some_predictions(30, 300), gather))
    assert "10 of 30 classes are shown, those of the lowest accuracy" in note
    assert "All 4 classes" in note_of(best_and_worst_gallery(some_predictions(4, 60), gather))


def test_label_errors_are_called_a_suspicion() -> None:
    note = note_of(label_errors_gallery(some_predictions(count=300), gather))
    assert "A suspicion, not a finding" in note
    assert "Look before you change a label" in note


def test_a_model_without_mistakes_has_pictures_that_say_so() -> None:
    perfect = some_predictions(margin=30.0)
    mistakes = note_of(confident_mistakes_gallery(perfect, gather))
    assert "None of the 60 val images is predicted wrong" in mistakes
    assert "No label of the 60 val images is suspected" in note_of(label_errors_gallery(perfect, gather))


def test_a_name_in_any_script_is_drawn() -> None:
    names = ["猫 $x", "собака $y"]
    predictions = predictions_of(np.eye(2), np.array([1, 0]), split="val", class_names=names)
    drawn(highest_loss_gallery(predictions, gather))


def test_small_images_are_enlarged_pixel_by_pixel_and_large_ones_reduced() -> None:
    checks = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    picture = drawn(tiles_figure([[Tile(np.repeat(checks[..., None], 3, axis=2))]], "t", "n"))
    assert set(np.unique(picture[70:180, 20:140])) == {0, 255}  # no grey: nothing is interpolated
    large = np.zeros((1024, 512, 3), np.uint8)
    assert drawn(tiles_figure([[Tile(large)]], "t", "n")).shape[0] < 300


def test_a_long_name_keeps_its_beginning_and_its_end() -> None:
    assert fitted("German shepherd 12", 12) == "German s… 12"
    assert width_of(fitted("猫猫猫猫猫猫猫猫", 8)) <= 8
    assert fitted("short", 12) == "short"


def test_a_probability_never_claims_to_be_sure() -> None:
    texts = [percent(p).replace("\N{NO-BREAK SPACE}", " ") for p in (0.0, 0.004, 0.42, 0.997, 1.0)]
    assert texts == ["0 %", "< 1 %", "42 %", "> 99 %", "100 %"]
