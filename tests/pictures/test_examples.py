from __future__ import annotations

import numpy as np

from harness.analysis.predictions import predictions_of
from harness.pictures.examples import (
    best_and_worst,
    confident_hits,
    confident_mistakes,
    evenly_spread,
    hardest_classes,
    highest_loss,
    suspected_label_errors,
)
from tests.pictures.conftest import some_predictions

# By hand: images 1 and 3 are wrong, 1 is the surest mistake.
LOGITS = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 2.0], [0.5, 0.0], [1.0, 0.0]])
LABELS = np.array([0, 0, 1, 1, 0])
SMALL = predictions_of(LOGITS, LABELS, split="val", class_names=["a", "b"])


def test_the_choices_of_a_case_worked_by_hand() -> None:
    assert highest_loss(SMALL, 2).tolist() == [1, 3]
    assert confident_mistakes(SMALL, 9).tolist() == [1, 3]
    assert confident_hits(SMALL, 9).tolist() == [
        0,
        2,
        4,
    ]  # the surest of each class, then the second of class 0
    assert hardest_classes(SMALL, 1).tolist() == [1]  # 1 of 2 right; class 0 has 2 of 3


def test_best_and_worst_share_no_image() -> None:
    best, worst = best_and_worst(SMALL, 0, 4)
    assert best.tolist() == [0, 4]
    assert worst.tolist() == [1]
    best, worst = best_and_worst(some_predictions(count=60), 2, 4)
    assert len(best) == len(worst) == 4
    assert not set(best) & set(worst)


def test_a_class_without_images_is_not_among_the_hardest() -> None:
    predictions = predictions_of(LOGITS[:2], LABELS[:2], split="val", class_names=["a", "b"])
    assert hardest_classes(predictions, 5).tolist() == [0]


def test_swapped_labels_are_suspected_and_right_ones_are_not() -> None:
    generator = np.random.default_rng(1)
    true = generator.integers(0, 5, 1000)
    logits = generator.normal(size=(1000, 5))
    logits[np.arange(1000), true] += 6
    labels = true.copy()
    swapped = generator.choice(1000, 30, replace=False)
    labels[swapped] = (labels[swapped] + 1) % 5
    predictions = predictions_of(logits, labels, split="val", class_names=list("abcde"))
    found = suspected_label_errors(predictions)
    assert len(set(found) & set(swapped)) >= 24  # cleanlab is cautious
    assert len(set(found) - set(swapped)) <= 3


def test_no_label_is_suspected_where_all_is_right() -> None:
    assert len(suspected_label_errors(some_predictions(margin=30.0))) == 0


def test_the_fixed_handful_is_spread_and_has_no_image_twice() -> None:
    assert evenly_spread(4, 10).tolist() == [0, 3, 6, 9]
    assert evenly_spread(8, 3).tolist() == [0, 1, 2]
