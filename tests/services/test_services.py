"""The services themselves: they start, answer on loopback, and stop."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import sqlalchemy

from experiments.scale.postgres import Server

pytestmark = pytest.mark.integration


def test_postgres_keeps_what_was_written_over_a_restart(postgres: Server) -> None:
    engine = sqlalchemy.create_engine(postgres.new_database(), pool_pre_ping=True)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table kept (number integer)"))
        connection.execute(sqlalchemy.text("insert into kept values (7)"))
    postgres.stop()
    with pytest.raises(sqlalchemy.exc.OperationalError), engine.connect():
        pass
    postgres.start()

    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("select number from kept")).scalar() == 7


def test_slurm_gives_each_job_its_own_gpu(slurm: Path, tmp_path: Path) -> None:
    command = ["sbatch", "--wait", "--gres=gpu:1", "--array=0-1", f"--output={tmp_path}/%a"]
    subprocess.run([*command, "--wrap", "echo $CUDA_VISIBLE_DEVICES; sleep 2"], check=True, timeout=60)

    assert {(tmp_path / name).read_text().strip() for name in "01"} == {"0", "1"}
