"""The examples for clusters, as far as one machine can tell."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from typer.main import get_command

from optuna_merge.cli import app
from optuna_merge.storages import create_storage

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "examples" / "cluster"


def check_command(arguments: list[str]) -> None:
    """It is a command of ours with flags that it has."""
    program, name, _, *flags = arguments
    assert program == "optuna-merge"
    command: Any = get_command(app)
    known = {flag for parameter in command.commands[name].params for flag in parameter.opts}
    given = {flag.partition("=")[0] for flag in flags if flag.startswith("--")}
    assert given <= known
    assert {"--storage", "--artifacts", "--role"} <= given


def toy_definition_file(folder: Path) -> Path:
    path = folder / "definition.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from helpers import toy_definition as definition\n"
    )
    return path


def check_roles(storage: str, name: str) -> None:
    """One worker has previewed at least ten trials, and the other finetuned."""
    study = optuna.load_study(study_name=name, storage=create_storage(storage))
    trials = study.get_trials()
    runs = {t.user_attrs["run"][:8] for t in trials if t.state == TrialState.COMPLETE}
    assert runs == {"finetune"}
    assert (
        sum(t.user_attrs["run"].startswith("preview") for t in trials if t.state.is_finished())
        >= 10
    )


def test_the_slurm_script(tmp_path: Path) -> None:
    """Its command lines run, two array jobs at once, under Slurm's variables."""
    definition = toy_definition_file(tmp_path)
    storage = f"sqlite:///{tmp_path}/study.db"
    create_storage(storage)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "USER": "somebody",
        "DEFINITION": str(definition),
        "STORAGE": storage,
        "ARTIFACTS": str(tmp_path / "artifacts"),
        "WORKDIR": str(tmp_path / "work"),
        "TRIALS": "10",
        "PATIENCE": "60",
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_ARRAY_TASK_COUNT": "1",
    }
    jobs = [
        subprocess.Popen(
            ["bash", str(CLUSTER / "slurm.sh")],
            env=environment | {"ROLE": role},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for role in ("preview", "finetune")
    ]
    outputs = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], outputs
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"preview-0", "finetune-0"}
    check_roles(storage, "text")


def test_the_slurm_script_has_flags_that_slurm_reads() -> None:
    lines = (CLUSTER / "slurm.sh").read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    flags = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(flags) < first_command, "Slurm stops reading at the first command"
    assert shutil.which("bash")


def test_the_kubernetes_jobs() -> None:
    jobs = list(yaml.safe_load_all((CLUSTER / "kubernetes.yaml").read_text()))
    roles = []
    for job in jobs:
        assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
        (container,) = job["spec"]["template"]["spec"]["containers"]
        check_command(container["command"])
        environment = {entry["name"]: entry for entry in container["env"]}
        used = {
            flag.partition("$(")[2].rstrip(")") for flag in container["command"] if "$(" in flag
        }
        assert used == environment.keys()
        roles.append(environment["ROLE"]["value"])
        limits = container["resources"].get("limits", {})
        assert ("nvidia.com/gpu" in limits) == (roles[-1] == "finetune")
    assert roles == ["preview", "finetune"]


def test_the_ray_workers() -> None:
    path = CLUSTER / "ray_workers.py"
    spec = importlib.util.spec_from_file_location("ray_workers", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    flags = module.arguments(["definition.py", "sqlite:///x.db", "s3://b", "--trials", "9"])
    check_command(command := module.command(flags, "preview", 0))
    assert command[command.index("--n-trials") + 1] == "2", "9 shared by 8, rounded up"
    if importlib.util.find_spec("ray") is None:
        with pytest.raises(SystemExit, match="pip install ray"):
            module.main(flags)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install ray")
def test_ray_runs_the_workers(tmp_path: Path) -> None:
    definition = toy_definition_file(tmp_path)
    storage = f"sqlite:///{tmp_path}/study.db"
    create_storage(storage)
    done = subprocess.run(
        [
            sys.executable, str(CLUSTER / "ray_workers.py"), str(definition), storage,
            str(tmp_path / "artifacts"), "--workdir", str(tmp_path / "work"), "--trials", "10",
            "--previewers", "1", "--finetuners", "1", "--cpus", "1", "--gpus", "0",
            "--patience", "60",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 workers ended well" in done.stdout
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"preview-0", "finetune-0"}
    check_roles(storage, "optuna_merge")
