"""Fills a study with many trials within seconds: copies the database rows of its ended trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa
from optuna.storages._rdb import models

from harness.search.database.storage import RetryingStorage

PARTS = (
    models.TrialParamModel,
    models.TrialValueModel,
    models.TrialUserAttributeModel,
    models.TrialIntermediateValueModel,
    models.TrialHeartbeatModel,
)


def fill(storage: RetryingStorage, study_id: int, num_trials: int) -> None:
    """Copy the trials of a study under new numbers until it has `num_trials`; all must have ended."""
    trials = models.TrialModel.__table__
    with storage.engine.begin() as connection:
        query = sa.select(trials).where(trials.c.study_id == study_id).order_by(trials.c.number)
        originals = [_without_key(trials, row) for row in connection.execute(query).mappings()]
        sources = list(connection.scalars(sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)))
        numbers = range(len(originals), num_trials)
        if not numbers:
            return
        rows = [{**originals[number % len(originals)], "number": number} for number in numbers]
        insert = sa.insert(trials).returning(trials.c.trial_id, sort_by_parameter_order=True)
        ids = connection.scalars(insert, rows).all()
        copies: dict[int, list[int]] = defaultdict(list)
        for number, trial_id in zip(numbers, ids, strict=True):
            copies[sources[number % len(sources)]].append(trial_id)
        for part in PARTS:
            connection.execute(sa.insert(part.__table__), list(_copied(connection, part.__table__, copies)))


def _copied(
    connection: sa.Connection, table: sa.Table, copies: Mapping[int, list[int]]
) -> Iterator[dict[str, Any]]:
    for row in connection.execute(sa.select(table).where(table.c.trial_id.in_(copies))).mappings():
        values = _without_key(table, row)
        yield from ({**values, "trial_id": copy} for copy in copies[row["trial_id"]])


def _without_key(table: sa.Table, row: sa.RowMapping) -> dict[str, Any]:
    (key,) = table.primary_key.columns
    return {str(name): value for name, value in row.items() if name != key.name}
