"""Artifact stores by URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from optuna.artifacts import Backoff, FileSystemArtifactStore
from optuna.artifacts._protocol import ArtifactStore

from optuna_merge.exceptions import StorageUnavailableError


def open_artifact_store(url: str) -> ArtifactStore:
    """Open an artifact store that retries what fails for a while.

    Args:
        url: A folder (made if missing), `s3://bucket` (extra `s3`), or `gs://bucket` (extra `gcs`;
            not tested yet). Credentials, region and endpoint are those that boto3 finds, so
            AWS_ENDPOINT_URL names another service than AWS.

    Raises:
        ValueError: another scheme, or a bucket with a path behind it.
        ImportError: the store's client library is missing; the message names the extra.
        StorageUnavailableError: the S3 bucket can't be reached.
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
    store = _open_s3 if parts.scheme == "s3" else _open_gcs
    return Backoff(store(url, parts.netloc))


def _open_s3(url: str, bucket: str) -> ArtifactStore:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise ImportError(f"{url!r} needs boto3: pip install 'optuna-merge[s3]'") from error
    from optuna.artifacts import Boto3ArtifactStore

    try:
        client = boto3.client("s3")
        client.head_bucket(Bucket=bucket)  # now, and not after the task runs
    except (BotoCoreError, ClientError, ValueError) as error:
        raise StorageUnavailableError(
            f"can't open the artifact store {url!r}: {error}; check the bucket's name, the "
            f"credentials, and AWS_ENDPOINT_URL where it is not at AWS"
        ) from error
    return Boto3ArtifactStore(bucket, client)


def _open_gcs(url: str, bucket: str) -> ArtifactStore:
    try:
        import google.cloud.storage  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{url!r} needs google-cloud-storage: pip install 'optuna-merge[gcs]'"
        ) from error
    from optuna.artifacts import GCSArtifactStore

    return GCSArtifactStore(bucket)
