"""Counts the test images of CIFAR-10 that look like a training image, by three measures.

    python -m experiments.look_alikes [--sheet FOLDER]

`harness.data.duplicates` uses the first, with the bound that is said there; docs/decisions.md says why. Which
of the pairs are of one picture is for the eye: `--sheet` draws them, with the likeness of each.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from harness.config.compose import compose_run
from harness.data import load_splits
from harness.data.held_out import load_test

BLOCK = 1000  # test images compared at a time
SIDE = 8  # of a thumbnail, in pixels
DRAWN, COLUMNS = 100, 10  # pairs of a sheet, the closest first

Features = np.ndarray  # float32 (N, 64), rows of length 1: their product is the likeness


def bits(function: Callable[[Image.Image], imagehash.ImageHash], images: np.ndarray) -> Features:
    """Return hashes of 64 bits as -1/8 and 1/8: two that differ in d bits have the likeness 1 - d/32."""
    hashes = np.array([function(Image.fromarray(image)).hash.ravel() for image in images])
    return ((2.0 * hashes - 1) / np.sqrt(hashes.shape[1])).astype(np.float32)


def thumbnails(images: np.ndarray) -> Features:
    """Return grey thumbnails of 8 x 8 pixels, of mean 0 and length 1: the likeness is their correlation."""
    grey = images.mean(axis=3, dtype=np.float32)
    step = images.shape[1] // SIDE
    small = grey.reshape(len(grey), SIDE, step, SIDE, step).mean(axis=(2, 4)).reshape(len(grey), -1)
    centred = small - small.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)


def nearest(features: Features, known: Features) -> tuple[np.ndarray, np.ndarray]:
    """Return the highest likeness of each row with a known one, and the index of that one."""
    best, at = np.empty(len(features), np.float32), np.empty(len(features), np.int64)
    for start in range(0, len(features), BLOCK):
        likeness = features[start : start + BLOCK] @ known.T
        at[start : start + BLOCK] = likeness.argmax(axis=1)
        best[start : start + BLOCK] = likeness.max(axis=1)
    return best, at


def draw_pairs(test: np.ndarray, train: np.ndarray, best: np.ndarray, at: np.ndarray, path: Path) -> None:
    """Draw the closest pairs: a test image, the training image below it, their likeness above."""
    chosen = np.argsort(-best, kind="stable")[:DRAWN]
    rows = -(-len(chosen) // COLUMNS)
    figure = Figure(figsize=(COLUMNS, 2.2 * rows), layout="constrained")
    for axes, place in zip(figure.subplots(rows, COLUMNS, squeeze=False).ravel(), chosen, strict=False):
        axes.imshow(np.concatenate([test[place], train[at[place]]]))
        axes.set_title(f"{best[place]:.4f}", fontsize=7)
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sheet", type=Path, help="draw each measure's closest pairs into this folder")
    options = parser.parse_args()
    config = compose_run(["data=cifar10"]).data
    part, _ = load_splits(config).train.side  # the part holds the validation images, too
    train, test = np.asarray(part.images), load_test(config).gather(slice(None))
    print(f"{len(test):,} test images, each with the most similar of {len(train):,} training images")
    in_bits = {f"{most} bits": 1 - most / 32 for most in (2, 3, 4, 6)}
    for name, make, bounds in (
        ("phash", lambda images: bits(imagehash.phash, images), in_bits),
        ("dhash", lambda images: bits(imagehash.dhash, images), in_bits),
        ("thumbnails", thumbnails, {f"correlation {bound}": bound for bound in (0.99, 0.983)}),
    ):
        started = time.process_time()
        features, known = make(test), make(train)
        made = time.process_time()
        best, at = nearest(features, known)
        counts = ", ".join(f"{text}: {int((best >= bound - 1e-4).sum())}" for text, bound in bounds.items())
        print(
            f"{name:<11} {counts}; {made - started:.1f} s of the processor to make, "
            f"{time.process_time() - made:.1f} s to compare",
            flush=True,
        )
        if options.sheet:
            draw_pairs(test, train, best, at, options.sheet / f"{name}.png")


if __name__ == "__main__":
    main()
