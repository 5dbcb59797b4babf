"""Private database servers for tests: started from the system's binaries, in a temporary directory, on a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import sqlite3
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.requirements_on_machine import free_port, missing

_LIMIT_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class DatabaseServer:
    """A running server.

    Attributes:
        admin_url: For SQLAlchemy, of a user who may do everything.
        stop: Ends it, after every transaction in hand was rolled back.
        start: Starts it again, on the same port.
    """

    admin_url: str
    stop: Callable[[], None]
    start: Callable[[], None]

    def create(self, *, template: str | None = None) -> str:
        """Create a database; its URL. See `create_database`."""
        return create_database(self.admin_url, template=template)


def create_database(admin_url: str, *, template: str | None = None, name: str | None = None) -> str:
    """Create a database on a server; its URL.

    Args:
        template: PostgreSQL only: the URL of the database to copy, whose connections are ended; None: empty.
        name: PostgreSQL only: what it is called, instead of the one that is called so now.
    """
    created = name or f"test_{uuid.uuid4().hex[:12]}"
    statements = [] if name is None else [f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"]
    if template is None:
        statements.append(f"CREATE DATABASE {created}")
    else:
        source = sa.make_url(template).database
        statements.append(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{source}'")
        statements.append(f"CREATE DATABASE {created} TEMPLATE {source}")
    engine = sa.create_engine(admin_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()
    return sa.make_url(admin_url).set(database=created).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[DatabaseServer]:
    """A PostgreSQL server of this test session; skips, or fails in CI, where PostgreSQL is not installed."""
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[DatabaseServer]:
    """A MariaDB server of this test session; skips, or fails in CI, where MariaDB is not installed."""
    with running_mariadb() as server:
        yield server


@contextmanager
def running_postgresql() -> Iterator[DatabaseServer]:
    """A PostgreSQL server for the length of a block."""
    newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    initdb = _binary("initdb", newest_first, install="postgresql")
    with _private_directory() as home:
        data = home / "data"
        _run([initdb, "-D", data, "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"], home)
        port = free_port()
        options = f"-h 127.0.0.1 -p {port} -k '' -c fsync=off -c synchronous_commit=off -c max_connections=60"
        pg_ctl = initdb.with_name("pg_ctl")

        def start() -> None:
            limit = str(_LIMIT_SECONDS)
            _run([pg_ctl, "-D", data, "-l", home / "log", "-w", "-t", limit, "-o", options, "start"], home)

        def stop() -> None:
            _run([pg_ctl, "-D", data, "-m", "fast", "-w", "stop"], home)

        start()
        try:
            url = f"postgresql+psycopg://mlflow@127.0.0.1:{port}/postgres"
            yield DatabaseServer(admin_url=url, stop=stop, start=start)
        finally:
            # pg_ctl stops the process whose id is in the data directory.
            _run([pg_ctl, "-D", data, "-m", "immediate", "-w", "stop"], home)


@contextmanager
def running_mariadb() -> Iterator[DatabaseServer]:
    """A MariaDB server for the length of a block."""
    mariadbd = _binary("mariadbd", [Path("/usr/sbin")], install="mariadb-server")
    installer = _binary("mariadb-install-db", [], install="mariadb-server")
    admin = _binary("mariadb-admin", [], install="mariadb-client")
    with _private_directory() as home:
        data, user_sql, port = home / "data", home / "user.sql", free_port()
        _run([installer, "--no-defaults", f"--datadir={data}", "--skip-test-db"], home)
        # One statement a line, or the server reads them as one.
        user_sql.write_text("CREATE USER mlflow@'127.0.0.1';\nGRANT ALL ON *.* TO mlflow@'127.0.0.1';\n")
        user_sql.chmod(0o644)
        command = [
            str(mariadbd),
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={home / 'socket'}",
            f"--pid-file={home / 'pid'}",
            f"--log-error={home / 'log'}",
            f"--init-file={user_sql}",
            f"--port={port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-buffer-pool-size=32M",
        ]
        with subprocess.Popen(
            command, cwd=home, env=_surroundings(home), user=_unprivileged(), stderr=subprocess.DEVNULL
        ) as process:
            try:
                address = ["--host=127.0.0.1", f"--port={port}", "--protocol=tcp", "--user=mlflow"]
                _run([admin, "--no-defaults", *address, f"--wait={_LIMIT_SECONDS}", "ping"], home)
                url = f"mysql+pymysql://mlflow@127.0.0.1:{port}/mysql"
                yield DatabaseServer(admin_url=url, stop=_not_offered, start=_not_offered)
            finally:
                process.kill()


def _not_offered() -> None:
    raise NotImplementedError("only PostgreSQL is stopped and started by a test")


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database that is in use: of its file alone a copy lacks what is in the write-ahead log still."""
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(target)) as copy:
        original.backup(copy)


def _binary(name: str, directories: Sequence[Path], *, install: str) -> Path:
    for directory in directories:
        if (directory / name).exists():
            return directory / name
    if found := shutil.which(name):
        return Path(found).resolve()
    return missing(name, install)


def _unprivileged() -> str | None:
    """Whom a server runs as: the servers refuse to run as root. None: whoever we are."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "mysql", "nobody") if name in known)


@contextmanager
def _private_directory() -> Iterator[Path]:
    """A short path (a socket's may have 107 bytes) that belongs to whom the server runs as."""
    directory = Path(tempfile.mkdtemp(prefix="db-"))
    try:
        if user := _unprivileged():
            shutil.chown(directory, user)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _surroundings(home: Path) -> dict[str, str]:
    """With a directory for temporary files of its own: MariaDB, when it starts, deletes every server's in there."""
    return {**os.environ, "TMPDIR": str(home)}


def _run(command: Sequence[str | Path], home: Path) -> None:
    """Run to the end; what it said is in the failure."""
    # To a file: a server that it leaves behind would keep a pipe open.
    output = home / "output"
    with output.open("w") as file:
        done = subprocess.run(
            command,
            cwd=home,
            env=_surroundings(home),
            user=_unprivileged(),
            stdout=file,
            stderr=file,
            timeout=2 * _LIMIT_SECONDS,
            check=False,
        )
    if done.returncode != 0:
        logs = "\n".join(path.read_text() for path in (output, home / "log") if path.exists())
        pytest.fail(f"{command[0]} ended with {done.returncode}:\n{logs}")
