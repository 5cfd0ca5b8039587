"""Subsets of the training images, and wrong labels for some of them: `splits.py` calls both.

The settings are in `harness.config.selection`. All draws depend on `data.split_seed` and the images alone,
and validation and test images are never touched. With one seed, a smaller subset is part of a larger one, and
so are the labels that a smaller share of noise changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.config.schema import BaseData
from harness.data.decoded_cache import Part
from harness.data.duplicates import first_of_duplicates
from harness.errors import DataError, did_you_mean

NOISE_STREAM = 1  # of random numbers, beside that of the splits


def choose_subset(part: Part, rows: np.ndarray, config: BaseData, names: Sequence[str]) -> np.ndarray:
    """Return the rows that train, sorted: of each class so many, along a long tail, or in all so many.

    In few-shot and long-tailed subsets, copies of an image count as one and only the first can be chosen.

    Args:
        rows: of the training images.
        names: of the classes.

    Raises:
        DataError: there are too few images.
    """
    if config.takes_subset:
        rows, _ = first_of_duplicates(part, rows)
    if config.images_per_class is not None:
        rows = _so_many_of_each(part, rows, config.images_per_class, config.split_seed, names)
    if config.imbalance_factor > 1:
        rows = _long_tailed(part, rows, config.imbalance_factor, config.split_seed, names)
    return _at_most(part, rows, config.max_train_samples, config.split_seed)


def _so_many_of_each(part: Part, rows: np.ndarray, count: int, seed: int, names: Sequence[str]) -> np.ndarray:
    labels = part.labels[rows]
    sizes = np.bincount(labels, minlength=len(names))
    if sizes.min() < count:
        scarce = int(sizes.argmin())
        raise DataError(
            f"class {names[scarce]!r} has {sizes[scarce]:,} training images (copies count once), fewer than "
            f"data.images_per_class={count}: lower it"
        )
    return rows[pick_stratified(labels, np.full(len(names), count), seed)]


def _long_tailed(part: Part, rows: np.ndarray, factor: float, seed: int, names: Sequence[str]) -> np.ndarray:
    labels = part.labels[rows]
    taken = long_tail(np.bincount(labels, minlength=len(names)), factor)
    if not taken.all():
        raise DataError(
            f"data.imbalance_factor={factor:g} leaves class {names[int(taken.argmin())]!r} without a "
            "training image: lower it"
        )
    return rows[pick_stratified(labels, taken, seed)]


def long_tail(sizes: np.ndarray, factor: float) -> np.ndarray:
    """Return how many images of each class a long-tailed subset has: int64 (K,).

    Class k of K has n · factor^(-k / (K - 1)) images, rounded down. The classes of the source need not be
    equally large: n is as large as they all allow.

    Args:
        sizes: images of each class in the source, (K,).

    Source: Cui et al., "Class-balanced loss based on effective number of samples" (2019), section 5.1; as Cao
        et al. (2019) have it, https://github.com/kaidic/LDAM-DRW, `imbalance_cifar.py`.
    """
    shares = factor ** (-np.arange(len(sizes)) / max(len(sizes) - 1, 1))
    most = (sizes / shares).min()
    return np.floor(most * shares * (1 + 1e-12)).astype(np.int64)  # 49.999… of an exact 50 is 50


def _at_most(part: Part, rows: np.ndarray, count: int | None, seed: int) -> np.ndarray:
    if count is None or count >= len(rows):
        return rows
    labels = part.labels[rows]
    sizes = np.bincount(labels)
    if count < len(sizes):
        raise DataError(f"data.max_train_samples={count} cannot cover {len(sizes)} classes; raise it")
    return rows[pick_stratified(labels, allocate(sizes, count, sizes), seed)]


def noisy_labels(part: Part, rows: np.ndarray, config: BaseData, names: Sequence[str]) -> np.ndarray:
    """Return the labels to train with: of a share of each class's images, wrong ones.

    Without `data.label_noise_pairs`, the wrong label is any other class, all equally likely (symmetric
    noise); with them, it is the class's pair (asymmetric noise, Patrini et al., 2017,
    https://arxiv.org/abs/1609.03683). So the share is that of the labels that are wrong.

    Raises:
        DataError: a pair names no class.
    """
    if not config.label_noise:
        return part.labels_at(rows)
    labels = part.labels[rows]
    pairs = _pairs(config.label_noise_pairs, names)
    # Drawn for each image of the part, so that an image's draw does not depend on the others that train.
    rng = np.random.default_rng([config.split_seed, NOISE_STREAM])
    rank = rng.random(len(part.labels))[rows]
    shift = rng.integers(1, max(len(names), 2), len(part.labels))[rows]
    noisy = labels.copy()
    for label in range(len(names)):
        if pairs and label not in pairs:
            continue
        members = np.flatnonzero(labels == label)
        number = round(config.label_noise * len(members))
        changed = members[np.argsort(rank[members], kind="stable")[:number]]
        noisy[changed] = pairs[label] if pairs else (label + shift[changed]) % len(names)
    return noisy


def _pairs(pairs: dict[str, str], names: Sequence[str]) -> dict[int, int]:
    for name in (*pairs, *pairs.values()):
        if name not in names:
            raise DataError(f"data.label_noise_pairs: there is no class {name!r}{did_you_mean(name, names)}")
    return {names.index(name): names.index(wrong) for name, wrong in pairs.items()}


# ── stratified picks ──────────────────────────────────────────────────────────────────────────────


def allocate(sizes: np.ndarray, count: int, highest: np.ndarray) -> np.ndarray:
    """Share `count` among classes in proportion to `sizes` (largest remainder), each within [1, highest].

    scikit-learn's stratified splitters leave small classes without a single image, or refuse counts near
    either end; a class without validation images would make every macro average meaningless.
    """
    quota = sizes * (count / sizes.sum())
    taken = np.clip(np.floor(quota), 1, highest).astype(np.int64)
    while (missing := count - int(taken.sum())) != 0:
        step = 1 if missing > 0 else -1
        has_room = taken < highest if step > 0 else taken > 1
        taken[np.argmax(np.where(has_room, (quota - taken) * step, -np.inf))] += step
    return taken


def pick_stratified(labels: np.ndarray, taken: np.ndarray, seed: int) -> np.ndarray:
    """Return sorted positions of `taken[k]` random images of each class k."""
    rng = np.random.default_rng(seed)
    picked = [rng.permutation(np.flatnonzero(labels == k))[:number] for k, number in enumerate(taken)]
    return np.sort(np.concatenate(picked))
