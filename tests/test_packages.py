"""Wheel and sdist of a clean checkout, installed beside what is installed already, and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from helpers import save_bert
from language_helpers import TOKENIZER

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = (  # what no study of texts needs
    *("boto3", "botorch", "google.cloud.storage", "gpytorch", "lm_eval", "numba"),
    *("optuna_dashboard", "peft", "plotly", "psycopg", "pymysql", "sacrebleu", "sklearn", "timm"),
)


def run(*command: str | Path, cwd: Path, without: Iterable[str] = ()) -> str:
    """What a command prints; it knows nothing of this checkout, and not of some packages."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    clean |= {"WITHOUT": " ".join(without)}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def built(source: Path, *what: str) -> Path:
    """The folder of what hatchling builds."""
    run(sys.executable, "-m", "hatchling", "build", *what, cwd=source)
    return source / "dist"


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheel and sdist of the files that git knows, or would know."""
    pytest.importorskip("hatchling")
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout")
    checkout = tmp_path_factory.mktemp("checkout")
    listed = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    return built(checkout)


@pytest.fixture(scope="module")
def unpacked(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def environment(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new environment with the wheel, and with what is installed here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    paths = [path for path in sys.path if path.endswith("-packages")]
    (packages / "installed.pth").write_text("\n".join(paths))
    (packages / "without.pth").write_text(
        "import os, sys; sys.modules.update(dict.fromkeys(os.environ.get('WITHOUT', '').split()))"
    )
    (wheel,) = dist.glob("*.whl")
    options = ("--quiet", "--no-deps", "--no-index")
    run(folder / "bin" / "python", "-m", "pip", "install", *options, wheel, cwd=folder)
    where = run(
        folder / "bin" / "python",
        "-c",
        "import optuna_merge; print(optuna_merge.__file__)",
        cwd=folder,
    )
    assert where.strip().startswith(str(packages))
    return folder / "bin"


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(dist: Path, unpacked: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"optuna_merge"}
    for name in ("reports/page/page.html", "reports/page/page.js", "py.typed"):
        assert f"optuna_merge/{name}" in names
    assert not [name for name in names if name.endswith("README.md")]
    (again,) = built(unpacked, "-t", "wheel").glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == names
    for name in ("LICENSE", "CITATION.cff", "README.md", "studies/text/optimize.py", "examples"):
        assert (unpacked / name).exists(), name


@pytest.mark.slow
def test_a_study_of_ones_own_from_the_wheel_alone(environment: Path, tmp_path: Path) -> None:
    save_bert(tmp_path / "body", layers=2)
    TOKENIZER.save_pretrained(tmp_path / "body")
    program = environment / "optuna-merge"
    assert "optuna-merge optimize study.yaml" in run(program, "init", cwd=tmp_path)
    text = (tmp_path / "study.yaml").read_text()
    for before, after in (
        ("distilbert-base-uncased", "body"),
        ("max_length: 128", "max_length: 8"),
        ("steps: 200", "steps: 4"),
        ("batch_size: 32", "batch_size: 8"),
    ):
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "study.yaml").write_text(text)
    rows = [f"w{i % 6} w{i % 5},{'xyz'[i % 3]},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "data.csv").write_text("\n".join(["text,topic,tone", *rows, ""]))
    found = run(program, "optimize", "study.yaml", "--n-trials", "6", cwd=tmp_path, without=EXTRAS)
    assert "Best task weights: topic " in found
    assert list(tmp_path.rglob("report-*.html"))
    run(program, "export", "study.yaml", "--out", "best", cwd=tmp_path)
    assert (tmp_path / "best" / "README.md").exists()


@pytest.mark.slow
def test_a_study_of_the_sdist_runs_with_the_wheel(environment: Path, unpacked: Path) -> None:
    script = unpacked / "studies" / "digits" / "optimize.py"
    found = run(environment / "python", script, "--n-trials", "6", "--seed", "0", cwd=unpacked)
    assert "Best task weights: " in found
