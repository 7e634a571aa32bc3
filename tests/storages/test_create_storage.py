from __future__ import annotations

import datetime
import logging
import pickle
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import traceback
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState
from processes import PythonProcess

from optuna_merge.exceptions import StorageUnavailableError
from optuna_merge.storages import create_storage
from optuna_merge.storages._create_storage import masked

SECRET = "hush"


class TestSQLiteConformance(StorageTestCase):
    """Optuna's own tests of storages, on ours."""

    @pytest.fixture
    def storage(self, tmp_path: Path) -> optuna.storages.BaseStorage:
        return create_storage(f"sqlite:///{tmp_path}/study.db")


@pytest.fixture(scope="module")
def postgres_storage(postgres_module_database: str) -> optuna.storages.BaseStorage:
    return create_storage(postgres_module_database)


class TestPostgreSQLConformance(StorageTestCase):
    @pytest.fixture
    def storage(
        self, postgres_storage: optuna.storages.BaseStorage
    ) -> optuna.storages.BaseStorage:
        for study in postgres_storage.get_all_studies():  # a new database takes longer
            postgres_storage.delete_study(study._study_id)
        return postgres_storage


@pytest.fixture(scope="module")
def mariadb_storage(mariadb_module_database: str) -> optuna.storages.BaseStorage:
    return create_storage(mariadb_module_database)


class TestMariaDBConformance(StorageTestCase):
    @pytest.fixture
    def storage(self, mariadb_storage: optuna.storages.BaseStorage) -> optuna.storages.BaseStorage:
        for study in mariadb_storage.get_all_studies():
            mariadb_storage.delete_study(study._study_id)
        return mariadb_storage


@pytest.mark.parametrize("url", [None, "sqlite://", "sqlite:///:memory:"])
def test_memory(url: str | None) -> None:
    assert isinstance(create_storage(url), InMemoryStorage)


def test_sqlite_relative_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    create_storage("sqlite:///a.db")
    create_storage(f"sqlite:///{tmp_path}/b.db")
    assert (tmp_path / "a.db").exists()
    assert (tmp_path / "b.db").exists()


def test_journal_relative_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in ("journal:///a.log", f"journal:///{tmp_path}/b.log"):
        storage = create_storage(url)
        assert isinstance(storage, JournalStorage)
        optuna.create_study(study_name="s", storage=storage).add_trial(
            optuna.create_trial(value=1.0)
        )
        again = optuna.load_study(study_name="s", storage=create_storage(url))
        assert [trial.value for trial in again.trials] == [1.0]
    assert (tmp_path / "a.log").exists()
    assert (tmp_path / "b.log").exists()


def test_sqlite_settings_survive_pickling(tmp_path: Path) -> None:
    storage = create_storage(f"sqlite:///{tmp_path}/study.db")
    for opened in (storage, pickle.loads(pickle.dumps(storage))):  # noqa: S301
        with opened.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 60_000
            # BEGIN IMMEDIATE took the lock although nothing was written.
            other = sqlite3.connect(tmp_path / "study.db", timeout=0)
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            other.close()


def test_sqlite_reads_of_trials_do_not_wait_for_a_writer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=create_storage(url))
    study.add_trial(optuna.create_trial(value=1.0))
    writer = create_storage(url)
    with writer.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE studies SET study_name = 'other'")
        # Would wait 60 seconds for the writer, and then fail, if reading locked.
        assert len(study.get_trials(deepcopy=False)) == 1
        assert study._storage._backend.get_trial(1).value == 1.0


def test_heartbeat_and_retry(tmp_path: Path) -> None:
    storage = create_storage(
        f"sqlite:///{tmp_path}/study.db", heartbeat_interval=1, grace_period=2, max_retry=1
    )
    assert is_heartbeat_enabled(storage)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.report(0.5, 0)
    trial.set_user_attr("a", 1)
    study._storage.record_heartbeat(trial._trial_id)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')"
        )
    optuna.storages.fail_stale_trials(study)
    failed, clone = study.trials
    assert (failed.state, clone.state) == (TrialState.FAIL, TrialState.WAITING)
    assert clone.params == failed.params
    assert clone.intermediate_values == {0: 0.5}
    assert clone.user_attrs == {"a": 1, "tries": 1}
    assert failed.user_attrs["failure"] == "its worker gave no sign of life for 2 s"

    assert not is_heartbeat_enabled(
        create_storage(f"sqlite:///{tmp_path}/study.db", heartbeat_interval=None)
    )


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "mariadb"])
def test_a_worker_killed_before_the_first_heartbeat_is_noticed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    if kind != "sqlite":
        url = request.getfixturevalue(f"{kind}_database")
    storage = create_storage(url)
    study = optuna.create_study(storage=storage)
    study.enqueue_trial({"x": 0.5})
    study.ask()  # the one that waited
    study.ask()  # a new one
    with storage.engine.begin() as connection:
        yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=24)
        connection.execute(
            sqlalchemy.text("UPDATE trial_heartbeats SET heartbeat = :then"),
            {"then": yesterday.strftime("%Y-%m-%d %H:%M:%S")},
        )
    optuna.storages.fail_stale_trials(study)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.FAIL, TrialState.WAITING, TrialState.WAITING]


def test_heartbeat_outlives_an_error_of_the_database(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = create_storage(f"sqlite:///{tmp_path}/study.db")
    trial = optuna.create_study(storage=storage).ask()
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE trial_heartbeats RENAME TO elsewhere")
    with caplog.at_level(logging.WARNING):
        storage.record_heartbeat(trial._trial_id)  # must not raise
    assert "Missed a heartbeat (OperationalError)" in caplog.text
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO trial_heartbeats")
    storage.record_heartbeat(trial._trial_id)
    with storage.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM trial_heartbeats").scalar() == 1


def test_postgres_url_gets_psycopg_and_pre_ping(postgres_database: str) -> None:
    storage = create_storage(postgres_database)
    assert isinstance(storage, RDBStorage)
    assert storage.engine.url.drivername == "postgresql+psycopg"
    study = optuna.create_study(storage=storage)
    # The server drops all idle connections; the next use must not notice.
    with storage.engine.connect() as connection:
        own = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar()
    admin = sqlalchemy.create_engine(storage.engine.url)
    with admin.connect() as connection:
        assert connection.exec_driver_sql(f"SELECT pg_terminate_backend({own})").scalar()
    study.optimize(lambda trial: 1.0, n_trials=1)
    assert study.best_value == 1.0
    admin.dispose()


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"])
def test_mysql_takes_long_attributes(scheme: str, mariadb_database: str) -> None:
    url = sqlalchemy.make_url(mariadb_database).set(drivername=scheme)
    storage = create_storage(url.render_as_string(hide_password=False))
    assert storage.engine.url.drivername == "mysql+pymysql"
    study = optuna.create_study(storage=storage)
    text = "ä" * 300_000  # TEXT holds 65,535 bytes
    study.set_user_attr("long", text)
    trial = study.ask()
    trial.set_user_attr("long", text)
    study.tell(trial, 1.0)
    again = optuna.load_study(
        study_name=study.study_name,
        storage=create_storage(url.render_as_string(hide_password=False)),
    )
    assert again.user_attrs["long"] == again.trials[0].user_attrs["long"] == text
    with storage.engine.connect() as connection:
        assert connection.get_isolation_level() == "READ COMMITTED"


def test_a_study_made_by_plain_optuna_goes_on(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    cli = "from optuna.cli import main; main()"
    arguments = f"create-study --study-name text --storage {url} --direction maximize".split()
    subprocess.run([sys.executable, "-c", cli, *arguments], check=True)
    study = optuna.load_study(study_name="text", storage=create_storage(url))
    study.optimize(lambda trial: 1.0, n_trials=1)
    # ... and plain Optuna reads what we wrote.
    assert optuna.load_study(study_name="text", storage=url).best_value == 1.0


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("study.db", ValueError, "expected sqlite:///study.db"),
        (f"oracle://user:{SECRET}@host/db", ValueError, "unknown scheme 'oracle'"),
        (f"nonsense://user:{SECRET}@host/db", ValueError, "unknown scheme 'nonsense'"),
        (
            f"postgresql://user:{SECRET}@host:port/db",
            ValueError,
            r"postgresql://user:\*\*\*@host:port",
        ),
        ("journal://study.log", ValueError, "journal:///study.log"),
        ("journal:///", ValueError, "journal:///study.log"),
        (f"postgresql+pg8000://user:{SECRET}@host/db", ImportError, "pip install 'pg8000'"),
        ("sqlite:////no/such/folder/a.db", StorageUnavailableError, "folder /no/such/folder does"),
        ("journal:////no/such/folder/a", StorageUnavailableError, "folder /no/such/folder does"),
        ("sqlite:////tmp", StorageUnavailableError, "it is a folder; name a file"),
    ],
)
def test_bad_urls(url: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        create_storage(url)
    assert SECRET not in _all_text(caught.value)


def test_url_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="PosixPath"):
        create_storage(tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "mysql"])
def test_missing_driver_names_what_to_install(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.setitem(sys.modules, "pymysql", None)
    extra = "mysql" if scheme == "mysql" else "postgres"
    package = rf"optuna-merge\[{extra}\]"
    with pytest.raises(ImportError, match=f"pip install '{package}'") as caught:
        create_storage(f"{scheme}://user:{SECRET}@127.0.0.1/db")
    assert SECRET not in _all_text(caught.value)


@pytest.mark.parametrize(
    "query", ["", f"?sslpassword={SECRET}", f"?connect_timeout=1&passfile=/{SECRET}"]
)
def test_unreachable_server_does_not_tell_the_password(
    query: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # bound, but nobody listens
        with caplog.at_level(logging.DEBUG), pytest.raises(StorageUnavailableError) as caught:
            create_storage(f"postgresql://user:{SECRET}@127.0.0.1:{port}/db{query}")
    assert f"127.0.0.1:{port}/db" in str(caught.value)
    assert "refused" in str(caught.value)
    assert "user:***@" in str(caught.value)
    assert SECRET not in _all_text(caught.value) + caplog.text


def test_wrong_password_is_named_but_not_shown(postgres_url: str) -> None:
    url = sqlalchemy.make_url(postgres_url).set(password=SECRET)
    with pytest.raises(StorageUnavailableError, match="password authentication failed") as caught:
        create_storage(url.render_as_string(hide_password=False))
    assert SECRET not in _all_text(caught.value)


def test_missing_database_is_named(postgres_url: str) -> None:
    url = sqlalchemy.make_url(postgres_url).set(database="nowhere")
    with pytest.raises(StorageUnavailableError, match='database "nowhere" does not exist'):
        create_storage(url.render_as_string(hide_password=False))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:p@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:p@w@h/d", "postgresql://u:***@h/d"),
        ("mysql://u:p/w@h:3/d?ssl_passphrase=x&a=b", "mysql://u:***@h:3/d?ssl_passphrase=***&a=b"),
        ("sqlite:////folder/a.db", "sqlite:////folder/a.db"),
        ("postgresql://u@h/d?password=p", "postgresql://u@h/d?password=***"),
    ],
)
def test_masked(url: str, shown: str) -> None:
    assert masked(url) == shown


@pytest.mark.parametrize("content", [b"not a database at all, but some text", b"\0" * 2000])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "study.db"
    path.write_bytes(content)
    with pytest.raises(StorageUnavailableError, match=r"study\.db.*not a database"):
        create_storage(f"sqlite:///{path}")
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["not a journal\n", '{"op_code": 0\n{}\n', "[1]\n{}\n"])
def test_a_file_that_is_no_journal(tmp_path: Path, content: str) -> None:
    path = tmp_path / "study.log"
    path.write_text(content)
    with pytest.raises(StorageUnavailableError, match=r"study\.log: it is not a journal"):
        create_storage(f"journal:///{path}")


def test_a_locked_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_storage(f"sqlite:///{tmp_path}/study.db").engine.dispose()
    for module in ("_create_storage", "_rdb"):
        monkeypatch.setattr(f"optuna_merge.storages.{module}.LOCK_TIMEOUT", 0.1)
    other = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageUnavailableError, match=r"study\.db.*locked.*which other process"):
        create_storage(f"sqlite:///{tmp_path}/study.db")
    other.close()
    create_storage(f"sqlite:///{tmp_path}/study.db")


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("v2.6.0.a", "an older version of Optuna.*optuna storage upgrade --storage sqlite:///"),
        ("v99.0.0.a", f"than the {optuna.__version__} installed here.*pip install -U optuna"),
    ],
)
def test_tables_of_another_version_of_optuna(tmp_path: Path, version: str, told: str) -> None:
    optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    with sqlite3.connect(tmp_path / "study.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (version,))
    connection.close()
    with pytest.raises(StorageUnavailableError, match=told):
        create_storage(f"sqlite:///{tmp_path}/study.db")


_KILLED = """
import os, signal, sys, optuna
from optuna_merge.storages import create_storage
study = optuna.create_study(study_name="s", storage=create_storage(sys.argv[1]))
def objective(trial):
    for key in range(5):
        trial.set_user_attr(str(key), "text" * 100)
    if trial.number == 12:
        os.kill(os.getpid(), signal.SIGKILL)
    return trial.suggest_float("x", 0, 1)
study.optimize(objective)
"""


def test_after_a_kill_the_file_alone_has_every_trial_that_ended(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    assert PythonProcess("-c", _KILLED, url).wait(timeout=120) == -signal.SIGKILL
    assert (tmp_path / "study.db-wal").stat().st_size > 0  # what the killed trial had written
    for name in ("copy", "opened"):
        if name == "opened":  # by another worker, which moves the rest into the file
            states = _states(url)
            assert states == [TrialState.COMPLETE] * 12 + [TrialState.RUNNING]
            create_storage(url)
        shutil.copy(tmp_path / "study.db", tmp_path / f"{name}.db")
        copied = _states(f"sqlite:///{tmp_path}/{name}.db")
        assert copied[:12] == [TrialState.COMPLETE] * 12
    assert len(copied) == 13


def _states(url: str) -> list[TrialState]:
    return [t.state for t in optuna.load_study(study_name="s", storage=create_storage(url)).trials]


def test_other_writes_come_into_the_file_by_quarters_of_a_megabyte(tmp_path: Path) -> None:
    storage = create_storage(f"sqlite:///{tmp_path}/study.db")
    study = optuna.create_study(study_name="s", storage=storage)
    for key in range(100):
        study.set_user_attr(str(key), "x" * 10_000)
    shutil.copy(tmp_path / "study.db", tmp_path / "copy.db")
    with sqlite3.connect(tmp_path / "copy.db") as connection:
        (written,) = connection.execute("SELECT count(*) FROM study_user_attributes").fetchone()
    connection.close()
    assert written > 100 - 262_144 / 10_000


def test_a_reader_does_not_keep_a_trial_from_ending(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(study_name="s", storage=create_storage(url))
    reader = sqlite3.connect(tmp_path / "study.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM trials").fetchone()
    study.optimize(lambda trial: 1.0, n_trials=3)
    shutil.copy(tmp_path / "study.db", tmp_path / "copy.db")
    assert _states(f"sqlite:///{tmp_path}/copy.db") == []  # a copy as the reader sees it, whole
    reader.execute("COMMIT")
    reader.close()
    study.optimize(lambda trial: 1.0, n_trials=1)
    shutil.copy(tmp_path / "study.db", tmp_path / "later.db")
    assert _states(f"sqlite:///{tmp_path}/later.db") == [TrialState.COMPLETE] * 4


def _open_to_others(folder: Path) -> None:
    """Let other users pass the folder and all above it that they could not pass."""
    for each in (folder, *folder.parents):
        if each.stat().st_mode & 0o005 != 0o005:
            each.chmod(0o755)


@pytest.mark.parametrize("what", ["folder", "file"])
@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_without_the_right_to_write(tmp_path: Path, scheme: str, what: str) -> None:
    """In a process of a user without rights: root may write everywhere."""
    folder = tmp_path / "closed"
    folder.mkdir()
    path = folder / "study"
    if what == "file":
        path.touch()
        path.chmod(0o444)
    folder.chmod(0o555 if what == "folder" else 0o777)
    script = textwrap.dedent(
        f"""
        import os
        from optuna_merge.exceptions import StorageUnavailableError
        from optuna_merge.storages import create_storage
        import psycopg, alembic.command, sqlalchemy.dialects.sqlite, optuna.storages._rdb.models
        os.chdir({str(folder)!r})
        if os.getuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            create_storage("{scheme}:///study")
        except StorageUnavailableError as error:
            print(error)
        """
    )
    _open_to_others(tmp_path)
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    expected = "is not writable" if what == "folder" else "not readable and writable"
    assert expected in answer.stdout
    assert "study" in answer.stdout


@pytest.mark.parametrize("closed", ["folder", "file"])
@pytest.mark.parametrize("kind", ["sqlite", "sqlite in use", "sqlite of the dead", "journal"])
def test_reading_needs_no_right_to_write(tmp_path: Path, kind: str, closed: str) -> None:
    """In a process of a user without rights, as above."""
    made, folder, scheme = tmp_path / "made", tmp_path / "closed", kind.partition(" ")[0]
    made.mkdir(), folder.mkdir()
    where = folder if kind == "sqlite in use" else made
    study = optuna.create_study(study_name="s", storage=create_storage(f"{scheme}:///{where}/db"))
    study.optimize(lambda trial: 1.0, n_trials=2)
    study.ask()  # of an SQLite file this is in the log alone
    if kind == "sqlite of the dead":
        shutil.copy(made / "db-wal", folder)
    elif kind == "sqlite":
        study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
        assert not (made / "db-wal").exists()
    if where == made:
        shutil.copy(made / "db", folder)
    for path in folder.iterdir():
        path.chmod(0o444)
    folder.chmod(0o555 if closed == "folder" else 0o777)
    script = textwrap.dedent(
        f"""
        import os, optuna, tempfile
        from optuna_merge.storages import create_storage, read_storage
        import psycopg, alembic.command, sqlalchemy.dialects.sqlite, optuna.storages._rdb.models
        create_storage("{scheme}:///{tmp_path}/other").get_all_studies()  # imports what is needed
        if os.getuid() == 0:
            os.setgroups([]); os.setgid(65534); os.setuid(65534)
        storage = read_storage("{scheme}:///{folder}/db")
        print([t.state.name for t in optuna.load_study(study_name="s", storage=storage).trials])
        """
    )
    _open_to_others(tmp_path)
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "['COMPLETE', 'COMPLETE', 'RUNNING']\n"
    assert not list(Path(tempfile.gettempdir()).glob("optuna-merge-*/db"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heartbeat_interval": 0}, "heartbeat_interval is 0"),
        ({"heartbeat_interval": -5}, "heartbeat_interval is -5"),
        ({"heartbeat_interval": 60, "grace_period": 60}, "grace_period is 60"),
        ({"max_retry": -1}, "max_retry is -1"),
    ],
)
def test_bad_heartbeats(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_storage(None, **arguments)


def test_importing_is_light() -> None:
    script = "import sys, optuna_merge.storages, optuna_merge.pruners; print(*sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert not {"torch", "botorch", "transformers"} & set(answer.stdout.split())


_WORKER = """
import sys, time, optuna
from optuna_merge.storages import create_storage
optuna.logging.set_verbosity(optuna.logging.ERROR)
storage = create_storage(sys.argv[1])
study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
while not study.user_attrs.get("go"):
    time.sleep(0.01)
def objective(trial):
    print(trial.params.get("x", trial.suggest_float("x", 0, 1000)), flush=True)
    return 0.0
while study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.WAITING]):
    study.optimize(objective, n_trials=1)
"""


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgres", "mariadb"])
def test_waiting_trials_run_once_each(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Four processes open one new storage at once, then execute 60 waiting trials."""
    url = {
        "sqlite": f"sqlite:///{tmp_path}/study.db",
        "journal": f"journal:///{tmp_path}/study.log",
    }.get(kind) or request.getfixturevalue(f"{kind}_database")
    workers = [PythonProcess("-c", _WORKER, url) for _ in range(4)]
    study = optuna.create_study(study_name="s", storage=create_storage(url), load_if_exists=True)
    for number in range(60):
        study.enqueue_trial({"x": float(number)})
    study.set_user_attr("go", True)
    executed: list[float] = []
    for worker in workers:
        out, error = worker.communicate(timeout=120)
        assert worker.returncode == 0, error
        executed += [float(line) for line in out.split()]
    queued = [x for x in executed if x.is_integer()]
    assert sorted(queued) == [float(number) for number in range(60)]
    trials = study.get_trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert all(trial.state == TrialState.COMPLETE for trial in trials)
    assert len(executed) == len(trials)


def _all_text(error: BaseException) -> str:
    """What a log would show of it, and what it carries without showing it."""
    text = "".join(traceback.format_exception(error))
    for attached in (error.__cause__, error.__context__):
        if attached is not None:
            text += _all_text(attached)
    return text
