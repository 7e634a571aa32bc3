"""Fixtures for all tests; above all real PostgreSQL and MariaDB servers, for several workers."""

from __future__ import annotations

import gc
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, their processes included; before torch
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import sqlalchemy
from browser import chromium, open_page, shots  # noqa: F401
from helpers import PASSWORD

REQUIRED = "OPTUNA_MERGE_REQUIRE_POSTGRES"
MARIADB_REQUIRED = "OPTUNA_MERGE_REQUIRE_MARIADB"


@pytest.fixture(scope="module", autouse=True)
def libraries_are_no_garbage() -> None:
    """Every finetune ends with a garbage collection, which would look through all libraries."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """`postgresql://` URL of a server of its own, on the loopback interface, password and all.

    Without PostgreSQL's programs the test is skipped; with OPTUNA_MERGE_REQUIRE_POSTGRES=1 it
    fails instead.
    """
    with postgres() as server:
        yield server.url


@pytest.fixture
def postgres_server() -> Iterator[PostgreSQL]:
    """A server of the test's own, which it may restart."""
    with postgres() as server:
        yield server


@contextmanager
def postgres() -> Iterator[PostgreSQL]:
    """A new server, on the loopback interface."""
    programs = _postgres_programs()
    if programs is None:
        _missing(
            REQUIRED, "initdb and postgres were not found: install PostgreSQL (apt-get postgresql)"
        )
    # Not pytest's temporary folder: PostgreSQL's user may not enter that.
    folder = Path(tempfile.mkdtemp(prefix="optuna-merge-postgres-"))
    try:
        with PostgreSQL(programs, folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _missing(required: str, reason: str) -> NoReturn:
    if os.environ.get(required) == "1":
        pytest.fail(f"{required}=1, but {reason}")
    pytest.skip(reason)


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """URL of a fresh, empty database on that server, for one test."""
    with _database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def postgres_module_database(postgres_url: str) -> Iterator[str]:
    """The same, one for all tests of a module."""
    with _database(postgres_url) as url:
        yield url


@pytest.fixture(scope="session")
def mariadb_url() -> Iterator[str]:
    """`mysql://` URL of a MariaDB server of its own, on the loopback interface; as `postgres_url`.

    With OPTUNA_MERGE_REQUIRE_MARIADB=1 the test fails where MariaDB is missing.
    """
    if not all(map(shutil.which, ("mariadbd", "mariadb-install-db"))):
        _missing(
            MARIADB_REQUIRED, "mariadbd was not found: install MariaDB (apt-get mariadb-server)"
        )
    folder = Path(tempfile.mkdtemp(prefix="optuna-merge-mariadb-"))
    try:
        with _mariadb(folder) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mariadb_database(mariadb_url: str) -> Iterator[str]:
    """URL of a fresh, empty database on that server, for one test."""
    with _mariadb_database(mariadb_url) as url:
        yield url


@pytest.fixture(scope="module")
def mariadb_module_database(mariadb_url: str) -> Iterator[str]:
    """The same, one for all tests of a module."""
    with _mariadb_database(mariadb_url) as url:
        yield url


@contextmanager
def _mariadb_database(mariadb_url: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    server = sqlalchemy.make_url(mariadb_url)
    admin = sqlalchemy.create_engine(server.set(drivername="mysql+pymysql"))
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name}")
    admin.dispose()


@contextmanager
def _mariadb(folder: Path) -> Iterator[str]:
    import pymysql

    as_user = _other_user(folder)
    data, socket_file = folder / "data", folder / "socket"
    with (folder / "log").open("w+") as log:
        common: dict[str, Any] = {"stdout": log, "stderr": subprocess.STDOUT, "cwd": folder}
        subprocess.run(
            [
                *f"mariadb-install-db --no-defaults --datadir={data} --skip-test-db".split(),
                "--auth-root-authentication-method=normal",
            ],
            check=True, **common, **as_user,
        )  # fmt: skip
        port = _free_port()
        process = subprocess.Popen(
            [
                *f"mariadbd --no-defaults --datadir={data} --socket={socket_file}".split(),
                *f"--port={port} --bind-address=127.0.0.1 --pid-file={folder}/pid".split(),
                f"--tmpdir={data}",  # in /tmp servers delete each other's temporary tables
                *["--innodb-flush-log-at-trx-commit=0", "--skip-name-resolve"],
            ],
            **common, **as_user,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    root = pymysql.connect(unix_socket=str(socket_file), user="root")
                    break
                except pymysql.err.OperationalError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        log.seek(0)
                        raise RuntimeError(f"MariaDB did not start:\n{log.read()}") from None
                    time.sleep(0.1)
            with root, root.cursor() as cursor:
                cursor.execute("CREATE USER merge@'127.0.0.1' IDENTIFIED BY %s", (PASSWORD,))
                cursor.execute("GRANT ALL ON *.* TO merge@'127.0.0.1'")
            yield sqlalchemy.URL.create(
                "mysql", "merge", PASSWORD, "127.0.0.1", port
            ).render_as_string(hide_password=False)
        finally:
            process.kill()  # nothing on it is worth an orderly end
            process.wait()


@contextmanager
def _database(postgres_url: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    server = sqlalchemy.make_url(postgres_url)
    admin = sqlalchemy.create_engine(
        server.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    admin.dispose()


def _postgres_programs() -> Path | None:
    folders = [
        Path(folder)
        for folder in (
            *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True),
            _pg_config_bindir(),
            os.path.dirname(shutil.which("postgres") or ""),
        )
        if folder
    ]
    return next(
        (f for f in folders if (f / "initdb").exists() and (f / "postgres").exists()), None
    )


def _pg_config_bindir() -> str:
    if shutil.which("pg_config") is None:
        return ""
    answer = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
    return answer.stdout.strip()


class PostgreSQL:
    """A PostgreSQL server in `folder`, on the loopback interface, as a context."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder

    def __enter__(self) -> PostgreSQL:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        self._log = (self._folder / "log").open("w+")
        as_user = _other_user(self._folder)
        data = self._folder / "data"
        subprocess.run(
            [
                self._programs / "initdb",
                *f"-D {data} -U merge --pwfile={password} --auth=scram-sha-256".split(),
                *["--no-sync", "--encoding=UTF8", "--locale=C"],
            ],
            check=True,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            **as_user,
        )
        self._as_user = as_user
        for _attempt in range(5):  # somebody may take the port between finding and using it
            self._port = _free_port()
            if self._start():
                return self
        self._log.seek(0)
        raise RuntimeError(f"PostgreSQL did not start:\n{self._log.read()}")

    def __exit__(self, *_error: object) -> None:
        self.stop()  # does not wait for its clients to go
        self._log.close()

    @property
    def url(self) -> str:
        return sqlalchemy.URL.create(
            "postgresql", "merge", PASSWORD, "127.0.0.1", self._port, "postgres"
        ).render_as_string(hide_password=False)

    def restart(self, *, seconds_away: float, crash: bool) -> None:
        """Stop the server, fast (its clients are cut off) or by a crash, and start it again."""
        self.stop(signal.SIGQUIT if crash else signal.SIGINT)
        time.sleep(seconds_away)
        self.start()

    def start(self) -> None:
        assert self._start(), "PostgreSQL did not start again"

    def _start(self) -> bool:
        self._process = subprocess.Popen(
            [
                self._programs / "postgres",
                *f"-D {self._folder / 'data'} -p {self._port} -F -c max_connections=200".split(),
                *["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="],
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=self._folder,
            **self._as_user,
        )
        return self._answers()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        self._process.send_signal(how)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        engine = sqlalchemy.create_engine(
            sqlalchemy.make_url(self.url).set(drivername="postgresql+psycopg")
        )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with engine.connect():
                    return True
            except sqlalchemy.exc.OperationalError:
                time.sleep(0.1)
            finally:
                engine.dispose()
        self._process.kill()
        self._process.wait()
        return False


def _other_user(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: then it runs as a user without rights."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam("nobody")
    for path in (folder, *folder.iterdir()):
        os.chown(path, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
