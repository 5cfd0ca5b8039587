"""Runs a PostgreSQL server during a `with` block, on loopback, with its own folder, port and password."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from psycopg import sql

from harness.errors import HarnessError

ABSENT = "PostgreSQL's server is not on this machine: `apt-get install postgresql` (Debian's package) has it"
USERS = ("postgres", "nobody")  # the server refuses to be run by root
ROLE = "harness"


class NoPostgresError(HarnessError):
    """There is no server to start."""


def free_port() -> int:
    """Return a port of the loopback interface on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A server that can be stopped and started again without losing its data."""

    programs: Path
    folder: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def url(self) -> str:
        """The address of the database `postgres`, which every server has."""
        return self._url("postgres")

    @property
    def pid(self) -> int:
        return int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])

    def new_database(self) -> str:
        """Create an empty database and return its address."""
        name = f"harness_{secrets.token_hex(6)}"
        with psycopg.connect(self.url, autocommit=True) as server:
            server.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self._url(name)

    def create(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        _hand_over(self.folder, secret)
        self._run("initdb", f"--username={ROLE}", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync")

    def start(self) -> None:
        """Start it and wait until it answers."""
        given = {"listen_addresses": "127.0.0.1", "port": str(self.port)} | dict(self.settings)
        options = " ".join(f"-c {name}={value}" for name, value in given.items())
        log = self.folder / "server.log"
        self._run("pg_ctl", "start", "--wait", f"--log={log}", f"--options={options} -k {self.folder}")

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `fast` ends every connection, `immediate` has the effect of a power cut."""
        self._run("pg_ctl", "stop", "--wait", f"--mode={mode}")

    def _url(self, database: str) -> str:
        return f"postgresql://{ROLE}:{self.password}@127.0.0.1:{self.port}/{database}"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self.programs / program, *arguments, f"--pgdata={self.folder / 'data'}"],
            user=_user(),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,  # the server itself writes to its log
            text=True,
            check=False,
        )
        if done.returncode:
            raise HarnessError(f"{program} failed: {done.stderr.strip()}")


@contextmanager
def running_postgres(settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run a server during the `with` block.

    Args:
        settings: of postgresql.conf.

    Raises:
        NoPostgresError: it is not installed.
        HarnessError: it does not start.
    """
    programs = find_programs()
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        server = Server(programs, Path(folder), settings or {})
        server.create()
        server.start()
        try:
            yield server
        finally:
            if (server.folder / "data" / "postmaster.pid").exists():
                server.stop("immediate")


def find_programs() -> Path:
    """Return the folder of the newest server's programs; Debian keeps them off the PATH.

    Raises:
        NoPostgresError: there is none.
    """
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    found = newest or shutil.which("initdb")
    if found is None:
        raise NoPostgresError(ABSENT)
    return Path(found).resolve().parent


def _user() -> str | None:
    """Return the user that runs the server: if we are root, one of `USERS`; otherwise None, for ourselves."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in USERS if name in known)


def _hand_over(*paths: Path) -> None:
    user = _user()
    for path in paths:
        if user is not None:
            shutil.chown(path, user)
