"""The rows of the table, in the order in which they are measured: later ones find the features of earlier."""

from __future__ import annotations

from experiments.performance.measurement import Row
from experiments.performance.rows import searches, training

ROWS: tuple[Row, ...] = (*training.ROWS, *searches.ROWS)
