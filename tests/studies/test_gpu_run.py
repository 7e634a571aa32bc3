"""The GPU run: its miniature, and what becomes of parts that fail; no GPU is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import toy_definition

from optuna_merge.definition import StudyDefinition
from optuna_merge.fitting import fit
from studies.gpu import mixture as gpu_mixture, run as gpu_run
from studies.gpu.cuda_tests import outcomes
from studies.gpu.findings import Findings
from studies.gpu.mixture import quality, texts_of
from studies.gpu.run import PARTS, Part, install, run
from studies.gpu.speed import (
    DTYPES,
    SHAPES,
    by_hand,
    configuration,
    merge_speed,
    posterior,
    tensor_shapes,
)
from studies.mixture.body import make_tokenizer, windows

ROOT = gpu_run.ROOT
SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}


def test_all_parts_end_within_eight_minutes() -> None:
    assert sum(part.seconds for part in PARTS) <= 480
    for part in PARTS:
        assert (ROOT / "studies" / "gpu" / f"{part.name}.py").is_file()


def fake_part(folder: Path, name: str, source: str) -> None:
    """A module studies.gpu.NAME that stands before the real ones."""
    package = folder / "studies" / "gpu"
    package.mkdir(parents=True, exist_ok=True)
    for init in (folder / "studies" / "__init__.py", package / "__init__.py"):
        init.touch()
    (package / f"{name}.py").write_text(source)


def test_a_part_that_fails_or_hangs_is_written_down_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = "import sys, time\nout = open(sys.argv[1], 'w')\n"
    fake_part(tmp_path, "machine", begin + 'out.write(\'{"card": "a card"}\')')
    fake_part(
        tmp_path, "bad", begin + 'out.write(\'{"some": 1}\'); out.close(); print("so"); 1 / 0'
    )
    fake_part(tmp_path, "late", begin + 'out.write("{}"); out.flush(); time.sleep(60)')
    fake_part(tmp_path, "mixture", begin + "import json\njson.dump({'flags': sys.argv[2:]}, out)")
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    parts = [Part(name, 5, 5) for name in ("machine", "bad", "late", "mixture")]
    parts[2] = Part("late", 1, 1)
    out = tmp_path / "gpu.json"
    found = run(out, parts, ["--cache", "c"], miniature=True, environment=os.environ)
    assert json.loads(out.read_text()) == found
    assert (found["card"], found["miniature"]) == ("a card", True)
    bad, late = found["parts"]["bad"], found["parts"]["late"]
    assert bad["some"] == 1, "what it had found is kept"
    assert bad["error"] == "exit status 1"
    assert "ZeroDivisionError" in bad["output"] and "so" in bad["output"]
    assert late["error"] == "stopped after 1 s"
    assert found["parts"]["mixture"]["flags"][-3:] == ["--cache", "c", "--miniature"]
    assert "error" not in found["parts"]["mixture"]
    assert "bad: exit status 1" in capsys.readouterr().out


def test_a_measurement_that_fails_is_an_entry_with_its_error(tmp_path: Path) -> None:
    found = Findings(tmp_path / "f.json", 60, True)
    found.tried("list", {"case": 1}, lambda: {"seconds": 2.0})
    found.tried("list", {"case": 2}, lambda: 1 / 0)
    late = Findings(tmp_path / "late.json", -1, True)
    late.tried("list", {"case": 3}, lambda: {"seconds": 2.0})
    assert json.loads((tmp_path / "f.json").read_text()) == {
        "list": [
            {"case": 1, "seconds": 2.0},
            {"case": 2, "error": "ZeroDivisionError: division by zero"},
        ]
    }
    assert late.values == {"list": [{"case": 3, "error": "no time was left"}]}


def test_a_wheel_folder_without_wheels_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no wheels in .*leave --wheels out"):
        install(tmp_path, tmp_path / "site")


def test_bodies_have_the_parameters_that_their_names_say() -> None:
    for name, shape in SHAPES.items():
        shapes = tensor_shapes(configuration(shape, 32_000))
        billions = sum(size.numel() for size in shapes.values()) / 1e9
        assert billions == pytest.approx(float(name.split()[0]), rel=0.15), name


@pytest.mark.parametrize("family", ["diagonal", "rows_columns"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merges_count_the_bytes_that_must_move(family: str, dtype: str) -> None:
    shapes = tensor_shapes(configuration(SMALL, 64))
    found = merge_speed(family, shapes, DTYPES[dtype], rate=1e9)
    numbers = sum(shape.numel() for shape in shapes.values())
    size = 2 if dtype == "bf16" else 4
    assert found["parameters"] == numbers
    least = (7 if family == "diagonal" else 4) * numbers * size
    assert least <= found["bytes"] < 1.1 * least
    assert found["share_of_bandwidth"] == pytest.approx(found["bytes"] / found["seconds"] / 1e9)
    assert ("by_hand_seconds" in found) == (family == "diagonal")


def test_a_merge_by_hand_is_the_packages() -> None:
    from optuna_merge.merging import merge
    from studies.gpu.speed import WEIGHTS

    shapes = tensor_shapes(configuration(SMALL, 64))
    posteriors = [posterior("diagonal", shapes, torch.float32) for _ in WEIGHTS]
    expected = merge(posteriors, WEIGHTS)
    for name, tensor in by_hand(posteriors).items():  # type: ignore[arg-type]
        torch.testing.assert_close(tensor, expected[name])


def test_what_does_not_fit_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.gpu.speed.memory", lambda: 1 << 16)
    with pytest.raises(MemoryError, match=r"GiB are needed, the card has"):
        merge_speed("diagonal", {"w": torch.Size([1 << 20])}, torch.float32, 1e9)


def test_without_archives_tasks_are_packages_of_the_standard_library() -> None:
    texts, origin = texts_of(None)
    assert origin == "packages of the standard library"
    tokenizer = make_tokenizer([splits["train"] for splits in texts.values()], 300)
    for splits in texts.values():
        assert set(splits) == {"train", "validation", "test"}
        for text in splits.values():
            assert len(windows(tokenizer, text[:20_000], 8, 16)["labels"]) == 8


def test_quality_leaves_uniform_weights_out() -> None:
    truths = [[9.0, 9.0], *([float(i), -float(i)] for i in range(6))]
    previews = [[0.0, 0.0], *([float(i) + 1, float(i)] for i in range(6))]
    found = quality(previews, truths)
    assert found["rank_correlation_by_task"] == pytest.approx([1.0, -1.0])
    assert found["error"] == pytest.approx((1 + 5) / 2)
    assert quality(previews, truths[:1]) == {}


def test_posteriors_that_fail_leave_the_other_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_some(definition: StudyDefinition, *more: Any, **options: Any) -> Any:
        if definition.posterior.family == "diagonal":
            raise ValueError("no curvature here")
        return fit(definition, *more, **options)

    monkeypatch.setattr(gpu_mixture, "fit", fit_some)
    fits, errors = gpu_mixture.fits_of(toy_definition(), tmp_path)
    assert list(fits) == ["isotropic"]
    assert errors == dict.fromkeys(
        ["diagonal", "diagonal+anchor"], "ValueError: no curvature here"
    )
    monkeypatch.setattr(gpu_mixture, "KINDS", {"diagonal": False})
    with pytest.raises(RuntimeError, match="no curvature here"):
        gpu_mixture.fits_of(toy_definition(), tmp_path)


def test_outcomes_of_tests_are_read(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="x"/>'
        '<testcase classname="a" name="y"><failure message="m">why</failure></testcase>'
        '<testcase classname="a" name="z"><skipped message="no GPU"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert outcomes(report) == {
        "passed": ["a::x"],
        "failed": {"a::y": "why"},
        "skipped": {"a::z": "no GPU"},
    }


@pytest.mark.slow
def test_the_miniature_runs_everything(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "studies/gpu/run.py", str(out), "--miniature"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["miniature"]
    assert found["card"] == (torch.cuda.get_device_name(0) if torch.cuda.is_available() else None)
    parts = found["parts"]
    assert set(parts) == {part.name for part in PARTS}
    assert parts["machine"]["copy_bytes_per_second"] > 1e8
    assert not parts["cuda_tests"]["tests"]["failed"]
    assert all("error" not in entry for entry in parts["speed"]["merges"])
    assert parts["speed"]["previews"][0]["preview_over_forward"] > 0
    lora, every = parts["mixture"]["searches"]
    assert (lora["trained"], every["trained"]) == ("LoRA", "all layers")
    assert lora["trained_parameters"] < every["trained_parameters"]
    for search in (lora, every):
        assert not search["errors_of_kinds"]
        assert len(search["truths"]) == len(search["weights"]) == 4
        uniform = search["previews"]["diagonal+anchor"][0]
        assert uniform == pytest.approx(search["truths"][0], abs=1e-4), "the anchor is exact"
