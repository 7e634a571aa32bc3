"""Task weights in other trainers' words."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, interleave_datasets

from optuna_merge.trainers import FORMS, mixture_lines

WEIGHTS = {"math": 0.2, "chat": 0.8, "code": 0.0}
TOKENS = {"math": 300.0, "chat": 100.0}


def test_interleave_datasets_samples_by_the_shares() -> None:
    sets = {
        name: Dataset.from_dict({"of": [name] * size})
        for name, size in (("math", 40), ("chat", 3000))
    }
    line = mixture_lines(WEIGHTS, "datasets")
    found = Counter(eval(line, {"interleave_datasets": interleave_datasets, **sets})["of"])  # noqa: S307
    size = found.total()
    assert abs(found["math"] - 0.2 * size) < 4 * math.sqrt(size * 0.2 * 0.8)
    assert found["math"] > 40, "small data are repeated"


def test_shares_of_examples_are_converted_where_losses_are_over_tokens() -> None:
    plain = yaml.safe_load(mixture_lines(WEIGHTS, "llamafactory"))
    assert plain == {
        "dataset": "math,chat", "mix_strategy": "interleave_over", "interleave_probs": "0.2,0.8",
    }  # fmt: skip
    text = mixture_lines(WEIGHTS, "llamafactory", label_tokens=TOKENS)
    math_share, chat_share = map(float, yaml.safe_load(text)["interleave_probs"].split(","))
    assert math_share / chat_share == pytest.approx(0.2 / 300 / (0.8 / 100), rel=1e-2)


def test_parts_of_data_sets_have_the_shares_and_one_is_whole() -> None:
    examples = {"math": 1000, "chat": 500}
    found = yaml.safe_load(mixture_lines(WEIGHTS, "axolotl", examples=examples))["datasets"]
    parts = {row["path"]: row["weight"] for row in found}
    assert parts.keys() == {"math", "chat"}
    assert max(parts.values()) == 1 and min(parts.values()) > 0
    rows = {task: parts[task] * size for task, size in examples.items()}
    assert rows["math"] / sum(rows.values()) == pytest.approx(0.2, rel=1e-3)
    with pytest.raises(ValueError, match="number of training examples of chat"):
        mixture_lines(WEIGHTS, "axolotl", examples={"math": 10})
    with pytest.raises(ValueError, match="number of training examples of math, chat"):
        mixture_lines(WEIGHTS, "axolotl")


def test_trl_takes_shares_and_tells_how_many_rows_it_uses() -> None:
    text = mixture_lines(WEIGHTS, "trl", examples={"math": 1000, "chat": 500})
    assert "Rows that are used: math 125 of 1000, chat 500 of 500." in text
    rows = yaml.safe_load(text)["datasets"]
    assert rows == [{"path": "math", "fraction": 0.2}, {"path": "chat", "fraction": 0.8}]
    assert yaml.safe_load(mixture_lines(WEIGHTS, "trl"))["datasets"] == rows


def test_trl_mixes_by_these_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its command `trl sft --config FILE` reads them and its data."""
    trl = pytest.importorskip("trl")
    sizes = {"math": 1000, "chat": 500}
    for name, size in sizes.items():
        Path(tmp_path, name).mkdir()
        Dataset.from_dict({"text": [name] * size}).to_json(tmp_path / name / "train.jsonl")
    Path(tmp_path, "mixture.yaml").write_text(mixture_lines(WEIGHTS, "trl", examples=sizes))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    parser = trl.TrlParser([trl.DatasetMixtureConfig])
    (config,) = parser.parse_args_and_config(["--config", "mixture.yaml"])
    found = Counter(trl.get_dataset(config)["train"]["text"])
    assert found == {"math": 125, "chat": 500}


def test_packed_tokens_are_shared_by_the_task_weights() -> None:
    text = mixture_lines(WEIGHTS, "torchtitan", label_tokens=TOKENS)
    assert "InterleavedDataset([math, chat], weights=[0.2, 0.8])" in text
    found = json.loads(mixture_lines(WEIGHTS, "json", label_tokens=TOKENS))
    assert found["task_weights"] == WEIGHTS
    assert found["shares_of_examples"]["math"] < 0.1


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match=f"expected one of {', '.join(FORMS)}"):
        mixture_lines(WEIGHTS, "torchtune")
    with pytest.raises(ValueError, match="no task has a weight above zero"):
        mixture_lines({"math": 0.0}, "json")
    with pytest.raises(ValueError, match="not of task 'chat'"):
        mixture_lines(WEIGHTS, "json", label_tokens={"math": 3})
