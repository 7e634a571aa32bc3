"""Machines that share a study by PostgreSQL and its files by S3; moto serves S3 on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from helpers import toy_definition

import optuna_merge as om
from optuna_merge.artifacts import SharedFiles, open_artifact_store
from optuna_merge.exceptions import StorageUnavailableError
from optuna_merge.sharing import StudySharing
from optuna_merge.storages import create_storage

boto3 = pytest.importorskip("boto3", reason="the extra s3")
moto_server = pytest.importorskip("moto.server", reason="moto[server]")

ROOT = Path(__file__).resolve().parents[2]
DEFINITION = """
import sys
sys.path.insert(0, {tests!r})
from helpers import toy_definition as definition
"""
MAIN = "from optuna_merge.cli import main; main()"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket; the environment is that of a user of a service that is not AWS."""
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


def test_two_machines(bucket: str, tmp_path: Path, postgres_database: str) -> None:
    path = tmp_path / "definition.py"
    path.write_text(DEFINITION.format(tests=str(ROOT / "tests")))
    create_storage(postgres_database)
    command = [
        sys.executable, "-W", "ignore", "-c", MAIN, "optimize", str(path),
        "--storage", postgres_database, "--artifacts", bucket, "--n-trials", "6",
        "--fraction", "0.5", "--seed", "0",
    ]  # fmt: skip
    machines = [
        subprocess.Popen(
            [*command, "--workdir", str(tmp_path / name)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for name in ("one", "two")
    ]
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
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
    om.prepare_study(study, fitted)  # the same posteriors, to the bit
    posteriors = sorted(p.name for p in (folder / "posteriors").glob("*.safetensors"))
    for name in ("one", "two"):
        there = tmp_path / name / "posteriors"
        assert sorted(p.name for p in there.glob("*.safetensors")) == posteriors
        for file in posteriors:
            assert (there / file).read_bytes() == (folder / "posteriors" / file).read_bytes()


def test_what_can_t_be_reached_is_told_at_once(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageUnavailableError, match=r"s3://missing.*bucket's name"):
        open_artifact_store("s3://missing")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageUnavailableError, match=r"127\.0\.0\.1:1.*AWS_ENDPOINT_URL"):
        open_artifact_store(bucket)
