"""Machines that share a study by PostgreSQL and its files by S3 or Google Cloud Storage.

moto and gcp-storage-emulator serve them on loopback.
"""

from __future__ import annotations

import io
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from helpers import toy_definition
from optuna.artifacts.exceptions import ArtifactNotFound
from processes import PythonProcess

import optuna_merge as om
from optuna_merge.artifacts import SharedFiles, _shared_files, _stores, open_artifact_store
from optuna_merge.exceptions import CorruptFileError, StorageUnavailableError
from optuna_merge.storages import create_storage
from optuna_merge.workers import StudySharing

ROOT = Path(__file__).resolve().parents[2]
DEFINITION = """
import sys
sys.path.insert(0, {tests!r})
from helpers import toy_definition as definition
"""
MAIN = "from optuna_merge.cli import main; main()"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket; the environment is that of a user of a service that is not AWS."""
    boto3 = pytest.importorskip("boto3", reason="the extra s3")
    moto_server = pytest.importorskip("moto.server", reason="moto[server]")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="merge")
    yield "s3://merge"
    server.stop()


@pytest.fixture
def gcs(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same for Google Cloud Storage."""
    pytest.importorskip("google.cloud.storage", reason="the extra gcs")
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="merge")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield "gs://merge"
    server.stop()


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """One of them, by its name."""
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    "bucket", ["s3", pytest.param("gcs", marks=pytest.mark.slow)], indirect=True
)
def test_two_machines(bucket: str, tmp_path: Path, postgres_database: str) -> None:
    path = tmp_path / "definition.py"
    path.write_text(DEFINITION.format(tests=str(ROOT / "tests")))
    create_storage(postgres_database)
    command = [
        "-c", MAIN, "optimize", str(path),
        "--storage", postgres_database, "--artifacts", bucket, "--n-trials", "6",
        "--fraction", "0.5", "--seed", "0",
    ]  # fmt: skip
    machines = [PythonProcess(*command, "--workdir", tmp_path / name) for name in ("one", "two")]
    outputs = ["".join(machine.communicate()) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert sum(output.count("alone: accuracy") for output in outputs) >= 4
    trained = [line for output in outputs for line in output.splitlines() if "trained in" in line]
    assert len(trained) == 2, "each task run was made once"

    # One that comes later and has seen nothing.
    storage = create_storage(postgres_database)
    study = optuna.load_study(study_name="optuna_merge", storage=storage)
    folder = tmp_path / "three"
    files = SharedFiles(study, open_artifact_store(bucket), folder)
    fitted = om.fit(
        toy_definition(), folder, progress=False, sharing=StudySharing(study, files, folder)
    )
    assert all(run.reused for run in fitted.runs.values())
    om.prepare_study(study, fitted, second_seed=False)  # the same posteriors, to the bit

    def found(folder: Path) -> list[str]:
        """What is shared of the folder; the first preview of a machine adds what heads need."""
        return sorted(p.name for p in folder.glob("*.safetensors") if p.name[:5] != "head-")

    posteriors = found(folder / "posteriors")
    for name in ("one", "two"):
        there = tmp_path / name / "posteriors"
        assert found(there) == posteriors
        for file in posteriors:
            assert (there / file).read_bytes() == (folder / "posteriors" / file).read_bytes()


@pytest.mark.parametrize("bucket", ["s3", "gcs"], indirect=True)
def test_files_travel_and_are_checked(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shared_files, "_WAITS", ())
    study = optuna.create_study()
    made = tmp_path / "one" / "a.bin"
    made.parent.mkdir()
    made.write_bytes(b"\0one" * 100_000)
    SharedFiles(study, open_artifact_store(bucket), tmp_path / "one").push([made])
    there = SharedFiles(study, open_artifact_store(bucket), tmp_path / "two")
    assert there.pull() == ["a.bin"]
    assert (tmp_path / "two" / "a.bin").read_bytes() == made.read_bytes()

    known = study.user_attrs["file:a.bin"]
    there._store.write(known["artifact"], io.BytesIO(b"other bytes"))
    (tmp_path / "two" / "a.bin").unlink()
    with pytest.raises(CorruptFileError, match=r"a\.bin.*SHA-256"):
        there.pull()
    study.set_user_attr("file:a.bin", known | {"artifact": "nothing"})
    with pytest.raises(ArtifactNotFound):
        there.pull()
    assert list((tmp_path / "two").iterdir()) == []


def test_a_missing_s3_is_told_at_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageUnavailableError, match=r"s3://missing.*bucket's name"):
        open_artifact_store("s3://missing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1:1.*AWS_ENDPOINT_URL"):
        open_artifact_store(s3)


def test_a_missing_gcs_is_told_at_once(gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageUnavailableError, match=r"gs://missing.*404.*bucket's name"):
        open_artifact_store("gs://missing")
    monkeypatch.setattr(_stores, "_GCS_PATIENCE", 0.1)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    with pytest.raises(StorageUnavailableError, match=r"gs://merge.*refused"):
        open_artifact_store(gcs)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/missing.json")
    with pytest.raises(StorageUnavailableError, match=r"missing\.json.*gcloud auth"):
        open_artifact_store(gcs)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("s3://merge", "boto3", "s3"), ("gs://merge", "google.cloud.storage", "gcs")],
)
def test_a_missing_client_names_its_extra(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{url}.*pip install 'optuna-merge\[{extra}\]'"):
        open_artifact_store(url)
