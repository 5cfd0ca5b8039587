"""Multi-label images that a small network learns within seconds: none, one or two handwritten digits each."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three")


def write_two_digits(root: Path, count: int, seed: int = 0) -> Path:
    """Write PNG files of 16x16 pixels below `root`, and labels.csv with a column of 0 and 1 per digit."""
    rng, digits = np.random.default_rng(seed), load_digits()
    known = np.flatnonzero(digits.target < len(NAMES))
    (root / "images").mkdir(parents=True)
    with (root / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", *NAMES])
        for number in range(count):
            pixels = rng.integers(0, 20, (16, 16))
            labels = np.zeros(len(NAMES), dtype=np.int64)
            for side in range(rng.integers(0, 3)):
                one, top = rng.choice(known), 8 * rng.integers(0, 2)
                pixels[top : top + 8, 8 * side : 8 * side + 8] += (digits.images[one] * 14).astype(np.int64)
                labels[digits.target[one]] = 1
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"images/{number}.png")
            table.writerow([f"images/{number}.png", *labels])
    return root
