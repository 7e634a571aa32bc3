"""A working folder's files in an artifact store, under their hashes in the study."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import optuna
from optuna.artifacts import download_artifact, upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound

from optuna_merge._base.files import atomic_path, sha256_file
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.trials import SHARED_FILE, ArtifactStore

_logger = logging.getLogger(__name__)

_PREFIX = SHARED_FILE.format(file="")
_WAITS = (0.1, 0.4, 1.6)
"""Seconds before a download is tried again. (To open and to write, the store itself retries.)"""


class SharedFiles:
    """Copies files between a working folder and an artifact store.

    The study says what there is: per file a user attribute `file:<path in the folder>` with the
    artifact's id and the SHA-256 of its bytes, which is written after the upload.

    Args:
        study: The study.
        store: The artifact store, see `open_artifact_store`.
        folder: The working folder.
    """

    def __init__(self, study: optuna.Study, store: ArtifactStore, folder: Path) -> None:
        self._study = study
        self._store = store
        self._folder = folder

    def names(self) -> list[str]:
        """Paths in the folder of all files that the study has."""
        attrs = self._study.user_attrs
        return sorted(key.removeprefix(_PREFIX) for key in attrs if key.startswith(_PREFIX))

    def push(self, paths: Iterable[Path]) -> list[str]:
        """Upload the files of the folder that the study does not have yet; return their names."""
        there = set(self.names())
        pushed = []
        for path in paths:
            name = path.relative_to(self._folder).as_posix()
            if name in there:
                continue
            digest = sha256_file(path)
            artifact = upload_artifact(
                artifact_store=self._store, file_path=str(path), study_or_trial=self._study
            )
            known = {"artifact": artifact, "sha256": digest}
            self._study.set_user_attr(SHARED_FILE.format(file=name), known)
            pushed.append(name)
        return pushed

    def pull(self) -> list[str]:
        """Download what the study has and the folder lacks; return the names of these files.

        Raises:
            CorruptFileError: a file of other bytes than were uploaded, or with a path that leads
                out of the folder; nothing is left of it.
        """
        pulled = []
        for name in self.names():
            parts = PurePosixPath(name)
            if parts.is_absolute() or ".." in parts.parts:
                raise CorruptFileError(
                    f"the study names a shared file {name!r} outside the folder"
                )
            path = self._folder / parts
            if path.exists():
                continue
            self._download(name, path, self._study.user_attrs[SHARED_FILE.format(file=name)])
            pulled.append(name)
        if pulled:
            _logger.info("%d shared files were downloaded to %s", len(pulled), self._folder)
        return pulled

    def _download(self, name: str, path: Path, known: dict[str, str]) -> None:
        """Download one file and check it; again, if that breaks off half-way."""
        for wait in (*_WAITS, None):
            try:
                with atomic_path(path) as temporary:
                    temporary.unlink()  # Optuna downloads to new files only
                    download_artifact(
                        artifact_store=self._store,
                        artifact_id=known["artifact"],
                        file_path=str(temporary),
                    )
                    found = sha256_file(temporary)
                    if found != known["sha256"]:
                        raise CorruptFileError(
                            f"shared file {name!r}: downloaded bytes have SHA-256 {found}, but "
                            f"{known['sha256']} were uploaded; is the artifact store the study's?"
                        )
                return
            except ArtifactNotFound:
                raise
            except Exception as error:
                if wait is None:
                    raise
                _logger.warning("downloading %s again: %s", name, type(error).__name__)
            time.sleep(wait)
