"""A PostgreSQL server with no password, reached from this machine alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services import free_port

PACKAGED = Path("/usr/lib/postgresql")  # Debian keeps the server's programs off the PATH
ACCOUNTS = ("postgres", "nobody")  # the server refuses to run as root
USER = "harness"


class PostgresServer:
    """A server in a folder; stopping and starting it keeps its databases."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs, self._data, self._log = programs, folder / "data", folder / "log"
        self.port = free_port()
        options = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": folder}
        options["fsync"] = "off"
        self._options = " ".join(f"-c {name}={value}" for name, value in options.items())

    def create(self) -> None:
        self._run("initdb", "-D", self._data, "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8")
        self.start()

    def start(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-w", "-t", 60, "-l", self._log, "-o", self._options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `fast` ends sessions, `immediate` is as a power cut."""
        self._run("pg_ctl", "-D", self._data, "-w", "-t", 60, "-m", mode, "stop")

    def new_database(self) -> str:
        """Return the URL of an empty database."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self._run("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", USER, name)
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self._programs / program), *map(str, arguments)]
        # The server keeps what it is started with: no pipe, for nobody would close it.
        with self._log.with_name("output").open("a+") as output:
            done = subprocess.run(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                check=False,
                **_as_user(),
            )
            output.seek(0)
            assert done.returncode == 0, f"{program} failed:\n{output.read()[-2000:]}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    programs = _find_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="harness-postgres-"))  # pytest's own folders are closed to others
    if os.geteuid() == 0:
        shutil.chown(folder, user=_account())
    server = PostgresServer(programs, folder)
    try:
        server.create()
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.stop("immediate")
        shutil.rmtree(folder, ignore_errors=True)


def _find_programs() -> Path | None:
    packaged = sorted(PACKAGED.glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    found = str(packaged[-1]) if packaged else shutil.which("initdb")
    return Path(found).parent if found else None


def _as_user() -> dict[str, Any]:
    return {"user": _account(), "extra_groups": []} if os.geteuid() == 0 else {}


def _account() -> str:
    import pwd

    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ACCOUNTS if name in known)
