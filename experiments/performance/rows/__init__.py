"""The rows of the table, in the order of measurement: some rows use features that an earlier row cached."""

from __future__ import annotations

from experiments.performance.measurement import Row
from experiments.performance.rows import searches, training

ROWS: tuple[Row, ...] = (*training.ROWS, *searches.ROWS)
