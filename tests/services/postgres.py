"""A PostgreSQL server for the session, with a new database for each test that asks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from experiments.scale.postgres import NoPostgresError, Server, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    try:
        with running_postgres({"fsync": "off"}) as server:
            yield server
    except NoPostgresError as error:
        pytest.skip(str(error))
