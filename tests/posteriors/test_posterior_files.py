from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from optuna_merge._base.tensors import HASH
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.merging import merge
from optuna_merge.posteriors import (
    DiagonalGaussian,
    IsotropicGaussian,
    load_posterior,
    read_metadata,
    save_posterior,
    save_tensors,
)


def make_diagonal() -> DiagonalGaussian:
    # Not in alphabetical order, one bf16, one of no dimensions.
    mean = {
        "w": torch.randn(3, 2),
        "b": torch.randn(2).bfloat16(),
        "scale": torch.tensor(0.5, dtype=torch.float64),
    }
    return DiagonalGaussian(mean, {name: tensor.float() ** 2 for name, tensor in mean.items()})


def test_a_diagonal_comes_back_as_it_was(tmp_path: Path) -> None:
    posterior = make_diagonal()
    content_hash = save_posterior(posterior, tmp_path / "new" / "p.safetensors", {"task": "news"})
    loaded = load_posterior(tmp_path / "new" / "p.safetensors")
    assert isinstance(loaded, DiagonalGaussian)
    assert list(loaded.mean) == ["w", "b", "scale"]
    for name, tensor in posterior.mean.items():
        assert loaded.mean[name].dtype == tensor.dtype
        assert torch.equal(loaded.mean[name], tensor)
        assert torch.equal(loaded.precision[name], posterior.precision[name])
    metadata = read_metadata(tmp_path / "new" / "p.safetensors")
    assert (metadata["task"], metadata[HASH]) == ("news", content_hash)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.safetensors"]


@pytest.mark.parametrize(
    "precision", [0.1, torch.tensor(0.1, dtype=torch.float64), {"a": 0.1, "b": 7.0}]
)
def test_an_isotropic_comes_back_as_it_was(tmp_path: Path, precision: object) -> None:
    mean = {"b": torch.ones(2), "a": torch.zeros(3)}
    save_posterior(IsotropicGaussian(mean, precision), tmp_path / "p")  # type: ignore[arg-type]
    loaded = load_posterior(tmp_path / "p")
    assert isinstance(loaded, IsotropicGaussian)
    assert loaded.elementwise("a") == 0.1
    assert loaded.precision == precision


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    posterior = make_diagonal()

    def hash_of(posterior: DiagonalGaussian, **metadata: str) -> str:
        return save_posterior(posterior, tmp_path / "p", metadata)

    base = hash_of(posterior, task="a")
    assert hash_of(posterior, task="a") == base
    assert hash_of(posterior, task="b") != base
    changed = {**posterior.mean, "w": posterior.mean["w"] + 1}
    assert hash_of(DiagonalGaussian(changed, posterior.precision), task="a") != base
    turned = {**posterior.mean, "w": posterior.mean["w"].reshape(2, 3)}
    assert hash_of(DiagonalGaussian(turned, posterior.precision), task="a") != base


def test_tied_and_strided_tensors_are_written(tmp_path: Path) -> None:
    tied = torch.randn(4, 3)
    posterior = IsotropicGaussian({"in": tied, "out": tied, "turned": tied.T, "row": tied[0]}, 1.0)
    save_posterior(posterior, tmp_path / "p")
    loaded = load_posterior(tmp_path / "p")
    for name, tensor in posterior.mean.items():
        assert torch.equal(loaded.mean[name], tensor)


def test_a_merge_can_be_saved(tmp_path: Path) -> None:
    merged = merge([make_diagonal(), make_diagonal()], [0.5, 0.5])
    save_posterior(IsotropicGaussian(merged), tmp_path / "p")
    loaded = load_posterior(tmp_path / "p")
    assert all(torch.equal(loaded.mean[name], tensor) for name, tensor in merged.items())
    save_tensors(merged, tmp_path / "t")
    assert load_file(tmp_path / "t").keys() == merged.keys()


def test_damaged_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "news.safetensors"
    save_posterior(make_diagonal(), path)
    good = path.read_bytes()

    path.write_bytes(good[:-5])
    with pytest.raises(CorruptFileError, match=r"news\.safetensors"):
        load_posterior(path)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptFileError, match=r"news\.safetensors was altered"):
        load_posterior(path)
    path.write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"news\.safetensors"):
        load_posterior(path)
    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(CorruptFileError, match=r"news\.safetensors"):
        load_posterior(path)
    save_tensors({"x": torch.ones(1)}, path)
    with pytest.raises(CorruptFileError, match="no posterior"):
        load_posterior(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        load_posterior(tmp_path / "missing")


def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p"
    for layout in ('{"family":"Cauchy","fields":{}}', '{"list":[]}', "{", '"tensor"'):
        save_tensors({"x": torch.ones(1)}, path, {"posterior": layout})
        with pytest.raises(CorruptFileError, match="layout"):
            load_posterior(path)


def test_the_readme_specifies_the_tensor_names(tmp_path: Path) -> None:
    save_posterior(make_diagonal(), tmp_path / "p")
    assert {"mean/w", "precision/w"} <= load_file(tmp_path / "p").keys()


def test_bad_metadata_and_things_that_are_no_posterior(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'sha256': the name is reserved"):
        save_posterior(make_diagonal(), tmp_path / "p", {"sha256": "x"})
    with pytest.raises(TypeError, match=r"'steps' is of type int.*json\.dumps"):
        save_posterior(make_diagonal(), tmp_path / "p", {"steps": 3})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="can't save a dict; expected one of IsotropicGaussian"):
        save_posterior({"w": torch.ones(1)}, tmp_path / "p")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
