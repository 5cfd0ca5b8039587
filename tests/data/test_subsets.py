"""Few-shot and long-tailed subsets, wrong labels: exact numbers, reproducible draws, validation untouched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.schema import RunConfig
from harness.config.validation import validate
from harness.data.decoded_cache import DecodedSet
from harness.data.subsets import long_tail
from harness.errors import ConfigError, DataError
from tests.data.test_splits import decoded_of, part_of, split

# `get_img_num_per_cls` of LDAM-DRW's imbalance_cifar.py, for CIFAR-10 with imb_factor=0.01 (12,406 images)
CIFAR10_LT_100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_the_long_tail_is_that_of_the_published_cifar_10_lt() -> None:
    assert long_tail(np.full(10, 5000), 100.0).tolist() == CIFAR10_LT_100
    assert sum(CIFAR10_LT_100) == 12_406


@settings(max_examples=30)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=12), st.floats(1.0, 50.0))
def test_the_long_tail_of_unequal_classes_keeps_its_profile(sizes: list[int], factor: float) -> None:
    taken = long_tail(np.array(sizes), factor)
    count = len(sizes)
    exact = np.array([factor ** (-k / (count - 1)) for k in range(count)])
    largest = min(size / share for size, share in zip(sizes, exact, strict=True))
    assert (taken <= sizes).all()
    assert np.abs(taken - largest * exact).max() <= 1 + 1e-6
    assert (np.diff(taken) <= 0).all()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"images_per_class": 10}, [10, 10, 10]),
        ({"imbalance_factor": 4.0}, [36, 18, 9]),
        ({"images_per_class": 16, "imbalance_factor": 4.0}, [16, 8, 4]),
        ({"imbalance_factor": 4.0, "max_train_samples": 21}, [12, 6, 3]),
    ],
)
def test_a_subset_has_exact_numbers_and_leaves_validation_alone(
    fields: dict[str, float], expected: list[int]
) -> None:
    decoded = decoded_of([50, 50, 50])
    whole, subset = split(decoded), split(decoded, **fields)
    assert np.bincount(subset.train.labels).tolist() == expected
    assert set(subset.train.indices) < set(whole.train.indices)
    np.testing.assert_array_equal(subset.val.indices, whole.val.indices)
    assert subset.val_digest == whole.val_digest
    assert subset.digest != whole.digest
    assert subset.whole is not None
    assert subset.whole.digest == whole.row_digest


def test_with_one_seed_a_smaller_subset_is_part_of_a_larger_and_another_seed_draws_others() -> None:
    decoded = decoded_of([50, 50, 50])
    few, more, other = (
        set(split(decoded, images_per_class=n, split_seed=seed).train.indices)
        for n, seed in [(5, 0), (20, 0), (5, 1)]
    )
    assert few < more
    assert few != other
    long, longer = (set(split(decoded, imbalance_factor=f).train.indices) for f in (10.0, 3.0))
    assert long < longer


def test_copies_of_an_image_count_once_in_a_few_shot_subset() -> None:
    decoded = decoded_of([30, 30])
    images = decoded.parts["train"].images.copy()
    images[1:28] = images[0]  # 3 different images of the first class, 30 of the second
    copied = DecodedSet(decoded.about, {"train": part_of(decoded.parts["train"].labels, images)})
    with pytest.raises(DataError, match=r"class 'class 0' has [12] training images \(copies count once\)"):
        split(copied, images_per_class=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images_per_class": 17}, r"'class 2' has 14 training images .* data.images_per_class=17: lower it"),
        ({"imbalance_factor": 500.0}, "imbalance_factor=500 leaves class 'class 2' without a training image"),
        ({"label_noise": 0.5, "label_noise_pairs": {"clas 1": "class 2"}}, "no class 'clas 1'; did you mean"),
        ({"sampling": "under", "batch_size": 43}, "larger than an under-sampled pass of 42 images"),
    ],
)
def test_what_is_too_much_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        split(decoded_of([50, 30, 20]), **fields)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"label_noise": 1.0}, "data.label_noise=1.0: input should be less than 1"),
        ({"label_noise_pairs": {"cat": "dog"}}, "while label_noise is 0"),
        ({"label_noise": 0.1, "label_noise_pairs": {"cat": "cat"}}, "'cat' would keep its label"),
        ({"imbalance_factor": 0.01}, "input should be greater than or equal to 1"),
        ({"sampling": "over"}, "each correct for the sizes of the classes"),
    ],
)
def test_a_configuration_that_makes_no_sense_costs_one_line(data: dict[str, object], message: str) -> None:
    loss = {"kind": "cross_entropy", "class_weights": "balanced"}
    with pytest.raises(ConfigError) as refused:
        validate(RunConfig, {"data": {"kind": "digits", **data}, "loss": loss})
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


# ── label noise ───────────────────────────────────────────────────────────────────────────────────


def test_symmetric_noise_changes_its_share_of_each_class_to_any_other_and_no_other_draw() -> None:
    decoded = decoded_of([1000, 500, 250, 250])
    clean, noisy = split(decoded), split(decoded, label_noise=0.4)
    np.testing.assert_array_equal(noisy.train.indices, clean.train.indices)
    np.testing.assert_array_equal(noisy.val.labels, clean.val.labels)
    assert (noisy.val_digest, noisy.row_digest) == (clean.val_digest, clean.row_digest)
    assert noisy.digest != clean.digest
    before, after = clean.train.labels, noisy.train.labels
    for label in range(4):
        of_class = before == label
        assert (after[of_class] != label).sum() == round(0.4 * of_class.sum())
        wrong = np.bincount(after[of_class & (after != label)], minlength=4)
        others = np.delete(wrong, label)
        assert np.abs(others - others.mean()).max() < 4 * np.sqrt(others.mean())  # equally likely


def test_noise_is_repeated_by_its_seed_grows_with_its_share_and_is_listed() -> None:
    decoded = decoded_of([100, 100])
    little, more, again, other = (
        split(decoded, label_noise=share, split_seed=seed).changed_labels()
        for share, seed in [(0.1, 0), (0.3, 0), (0.3, 0), (0.3, 1)]
    )
    assert more == again != other
    assert {row["row"] for row in little} < {row["row"] for row in more}
    labels = decoded.parts["train"].labels
    for row in more:
        assert row["label_before"] == f"class {labels[row['row']]}" != row["label"]
    assert split(decoded).changed_labels() == []


def test_asymmetric_noise_follows_its_pairs() -> None:
    decoded = decoded_of([100, 100, 100])
    pairs = {"class 0": "class 2"}
    clean, noisy = split(decoded), split(decoded, label_noise=0.25, label_noise_pairs=pairs)
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, (clean.train.labels, noisy.train.labels), 1)
    assert counts.tolist() == [[54, 0, 18], [0, 72, 0], [0, 0, 72]]
