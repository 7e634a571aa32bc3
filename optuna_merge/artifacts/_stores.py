"""Artifact stores by URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from optuna.artifacts import Backoff, FileSystemArtifactStore
from optuna.artifacts._protocol import ArtifactStore


def open_artifact_store(url: str) -> ArtifactStore:
    """Open an artifact store that retries what fails for a while.

    Args:
        url: A folder (made if missing), `s3://bucket` (extra `s3`), or `gs://bucket`.

    Raises:
        ValueError: another scheme, or a bucket with a path behind it.
        ImportError: the store's client library is missing; the message names the extra.
    """
    parts = urlsplit(url)
    if parts.scheme in ("", "file"):
        folder = Path(parts.path if parts.scheme else url)
        folder.mkdir(parents=True, exist_ok=True)
        return Backoff(FileSystemArtifactStore(folder))
    if parts.scheme not in ("s3", "gs"):
        raise ValueError(
            f"artifact store {url!r}: expected a folder, s3://bucket or gs://bucket, got the "
            f"scheme {parts.scheme!r}"
        )
    if not parts.netloc or parts.path.strip("/"):
        raise ValueError(f"artifact store {url!r}: name a bucket and nothing behind it")
    if parts.scheme == "s3":
        try:
            import boto3  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{url!r} needs boto3: pip install 'optuna-merge[s3]'") from error
        from optuna.artifacts import Boto3ArtifactStore

        return Backoff(Boto3ArtifactStore(parts.netloc))
    from optuna.artifacts import GCSArtifactStore

    return Backoff(GCSArtifactStore(parts.netloc))
