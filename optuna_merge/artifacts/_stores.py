"""Artifact stores by URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from optuna.artifacts import Backoff, FileSystemArtifactStore

from optuna_merge.exceptions import StorageUnavailableError
from optuna_merge.trials import ArtifactStore

_GCS_PATIENCE = 20.0
"""Seconds in which opening a bucket is tried again."""


def open_artifact_store(url: str) -> ArtifactStore:
    """Open an artifact store that retries what fails for a while.

    Args:
        url: A folder (made if missing), `s3://bucket` (extra `s3`), or `gs://bucket` (extra
            `gcs`). Credentials, region and endpoint are those that boto3 and Google's client
            find, so AWS_ENDPOINT_URL names another service than AWS.

    Raises:
        ValueError: another scheme, or a bucket with a path behind it.
        ImportError: the store's client library is missing; the message names the extra.
        StorageUnavailableError: the bucket can't be reached.
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
        from google.api_core.exceptions import GoogleAPIError
        from google.auth.exceptions import GoogleAuthError
        from google.cloud.storage import Client
        from google.cloud.storage.retry import DEFAULT_RETRY
    except ImportError as error:
        raise ImportError(
            f"{url!r} needs google-cloud-storage: pip install 'optuna-merge[gcs]'"
        ) from error
    from optuna.artifacts import GCSArtifactStore

    try:
        client = Client()
        patient = DEFAULT_RETRY.with_timeout(_GCS_PATIENCE)
        # Now, and not after the task runs; who may only read and write objects may not ask for
        # the bucket itself.
        list(client.list_blobs(bucket, max_results=1, retry=patient))
    except (GoogleAPIError, GoogleAuthError, OSError, ValueError) as error:
        raise StorageUnavailableError(
            f"can't open the artifact store {url!r}: {error}; check the bucket's name and the "
            f"credentials (`gcloud auth application-default login`)"
        ) from error
    return GCSArtifactStore(bucket, client)
