from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from optuna_merge.storages import create_storage


@pytest.fixture(params=["memory", "plain sqlite", "sqlite", "journal", "postgres"])
def storage(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[optuna.storages.BaseStorage | str]:
    """Each kind of storage, empty."""
    if request.param == "plain sqlite":
        yield optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/plain.db")
        return
    urls = {
        "memory": lambda: None,
        "sqlite": lambda: f"sqlite:///{tmp_path}/study.db",
        "journal": lambda: f"journal:///{tmp_path}/study.log",
        "postgres": lambda: request.getfixturevalue("postgres_database"),
    }
    yield create_storage(urls[request.param]())


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(level)
