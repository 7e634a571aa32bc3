"""Commands that read need what they read: they make no study, database or fit on the way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optuna_merge.commands._flags import StudyFlags

if TYPE_CHECKING:
    import optuna

_SQLITE = "sqlite:///"


def existing_study(flags: StudyFlags) -> optuna.Study:
    """Open a study that exists, to read it; raise `ValueError` that names those that do."""
    from optuna_merge.search import load_study
    from optuna_merge.storages import read_storage

    file = Path(flags.storage.removeprefix(_SQLITE).partition("?")[0])
    if flags.storage.startswith(_SQLITE) and not file.is_file():
        raise ValueError(
            f"no database {file}; give that of the study with --storage, or run "
            f"optuna-merge optimize first"
        )
    return load_study(flags.study_name, read_storage(flags.storage))


def check_fitted(workdir: Path) -> None:
    """Raise `ValueError` unless tasks were finetuned in this working folder."""
    if not any((workdir / name).is_dir() for name in ("finetunes", "program-runs")):
        raise ValueError(
            f"nothing was fitted in the working folder {workdir}; give that of the study with "
            f"--workdir, or run optuna-merge fit first"
        )
