"""LLaMA-Factory and axolotl as commands: how their configuration is filled, and what is called."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.numpy import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN = EXAMPLES / "configured" / "run.py"
SHARES = {"math": 0.25, "chat": 0.75}


@pytest.fixture(scope="module")
def filled() -> Any:
    return runpy.run_path(str(RUN))["filled"]


def test_llamafactory_is_given_probabilities(filled: Any) -> None:
    config = filled("llamafactory", "out", SHARES, 3, 300)
    assert config["dataset"] == "math,chat"
    assert [float(p) for p in config["interleave_probs"].split(",")] == [0.25, 0.75]
    assert config["mix_strategy"] == "interleave_over"
    assert (config["output_dir"], config["seed"], config["max_steps"]) == ("out", 3, 300)
    assert config["stage"] == "sft", "the rest is as the user has written it"
    alone = filled("llamafactory", "out", {"math": 0.0, "chat": 1.0}, 3, 300)
    assert alone["dataset"] == "chat", "a probability of zero could end in no end"
    assert float(alone["interleave_probs"]) == 1


def test_axolotl_is_given_the_part_of_each_data_set(filled: Any) -> None:
    config = filled("axolotl", "out", SHARES, 3, 300)
    rows = {row["path"]: row for row in config["datasets"]}
    assert rows.keys() == {"data/math", "data/chat"}
    assert all(row["type"] == "chat_template" for row in rows.values())
    used = {"math": rows["data/math"]["weight"] * 7473, "chat": rows["data/chat"]["weight"] * 9500}
    assert used["math"] / sum(used.values()) == pytest.approx(0.25, rel=1e-3)
    assert max(row["weight"] for row in rows.values()) == 1
    alone = filled("axolotl", "out", {"math": 1.0, "chat": 0.0}, 3, 300)
    assert [row["path"] for row in alone["datasets"]] == ["data/math"]


STAND_IN = """
import sys, yaml, numpy, pathlib
from safetensors.numpy import save_file
config = yaml.safe_load(open(sys.argv[2]))
probabilities = map(float, str(config["interleave_probs"]).split(","))
told = dict(zip(config["dataset"].split(","), probabilities))
pathlib.Path(config["output_dir"]).mkdir(exist_ok=True)
shares = numpy.array([told.get(task, 0.0) for task in ("math", "chat")])
save_file({"w": shares}, config["output_dir"] + "/model.safetensors")
"""

EVALUATE = """
import sys, json, runpy
from safetensors.numpy import load_file
if sys.argv[1] != "evaluate":
    runpy.run_path({run!r}, run_name="__main__")
w = load_file(sys.argv[2] + "/model.safetensors")["w"]
print(json.dumps({{"math": 2 - float(w[0]), "chat": 3 - float(w[1])}}))
"""


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """A command of this name on the PATH."""
    command = folder / "bin" / name
    command.parent.mkdir(exist_ok=True)
    command.write_text(f"#!{sys.executable}\n{script}")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For `llamafactory-cli`: its model is the shares that it was told."""
    installed(tmp_path, monkeypatch, "llamafactory-cli", STAND_IN)


@pytest.mark.usefixtures("stand_in")
def test_the_trainer_is_called_with_the_filled_file(tmp_path: Path) -> None:
    arguments = [str(tmp_path), str(tmp_path / "model"), json.dumps(SHARES), "3", "300"]
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(RUN))["train"]("llamafactory", *arguments)
    assert ended.value.code == 0
    assert load_file(tmp_path / "model" / "model.safetensors")["w"].tolist() == [0.25, 0.75]
    assert yaml.safe_load((tmp_path / "llamafactory.yaml").read_text())["max_steps"] == 300


def test_an_axolotl_that_would_ignore_the_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [str(tmp_path), str(tmp_path / "model"), json.dumps(SHARES), "3", "300"]
    train = runpy.run_path(str(RUN))["train"]
    installed(tmp_path, monkeypatch, "axolotl", "print('axolotl, version 0.19.0')")
    with pytest.raises(SystemExit, match=r"axolotl 0\.19 doesn't know the weight of a data set"):
        train("axolotl", *arguments)
    assert not (tmp_path / "axolotl.yaml").exists()
    installed(tmp_path, monkeypatch, "axolotl", "print('axolotl, version 0.21.0')")
    with pytest.raises(SystemExit) as ended:
        train("axolotl", *arguments)
    assert ended.value.code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "command"), [("llamafactory", "llamafactory-cli"), ("axolotl", "axolotl")]
)
def test_a_trainer_that_is_installed_trains_and_goes_on(
    trainer: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not on the PATH")
    save_tiny_chat_model(tmp_path / "tiny")
    write_chats(tmp_path / "data", {"math": 64, "chat": 96})
    shutil.copytree(RUN.parent, tmp_path / "configured")
    config = tmp_path / "configured" / f"{trainer}.yaml"
    text = config.read_text().replace("Qwen/Qwen2.5-0.5B", "tiny")
    config.write_text(text.replace("bf16: true", "bf16: false") + FOR_CPUS[trainer])
    sizes = tmp_path / "configured" / "run.py"
    sizes.write_text(
        re.sub(r'{"math": \d+, "chat": \d+}', '{"math": 64, "chat": 96}', RUN.read_text())
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AXOLOTL_DO_NOT_TRACK", "1")

    def run(*arguments: str) -> str:
        call = [sys.executable, str(sizes), *arguments]
        done = subprocess.run(call, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    Path("run").mkdir()
    for steps in ("2", "4"):
        run(trainer, "run", "model", json.dumps(SHARES), "3", steps)
        state = json.loads(Path("model", f"checkpoint-{steps}", "trainer_state.json").read_text())
        assert state["global_step"] == int(steps)
    assert Path("model", "checkpoint-2").stat().st_mtime < config_time(trainer), "it went on"
    # Of 64 and 96 rows a fourth and three fourths: axolotl cuts math to 32, LLaMA-Factory repeats
    # chat's until math's have all come, after 256 or so.
    batches = {"llamafactory": (13, 20), "axolotl": (8, 8)}[trainer]
    assert batches[0] <= round(4 / state["epoch"]) <= batches[1]
    losses = json.loads(run("evaluate", "model").splitlines()[-1])
    assert losses.keys() == SHARES.keys() and all(0 < loss < 7 for loss in losses.values())


FOR_CPUS = {
    "llamafactory": "",
    "axolotl": "lora_mlp_kernel: false\nlora_qkv_kernel: false\nlora_o_kernel: false\n",
}
"""Axolotl's kernels are for GPUs."""


def config_time(trainer: str) -> float:
    """When the configuration of the newest run was written."""
    return Path("run", f"{trainer}.yaml").stat().st_mtime


def save_tiny_chat_model(folder: Path) -> None:
    """A Llama of random values, and a tokenizer of bytes with a chat template."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=letters)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
            "{% endfor %}"
        ),
    )
    sizes = {"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 1024}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 4}
    ids = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), **ids, **sizes, **layers)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_chats(folder: Path, sizes: dict[str, int]) -> None:
    """Training and validation chats of each task, and what LLaMA-Factory wants to know of them."""
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
    }
    about = {}
    for task, size in sizes.items():
        (folder / task).mkdir(parents=True)
        for split, count in (("train", size), ("validation", 4)):
            chats = [
                {
                    "messages": [
                        {"role": "user", "content": f"{task} {i}"},
                        {"role": "assistant", "content": str(i + 1)},
                    ]
                }
                for i in range(count)
            ]
            (folder / task / f"{split}.jsonl").write_text("\n".join(map(json.dumps, chats)))
        about[task] = {
            "file_name": f"{task}/train.jsonl", "formatting": "sharegpt",
            "columns": {"messages": "messages"}, "tags": tags,
        }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(about))


@pytest.mark.slow  # four processes import torch one after the other
@pytest.mark.usefixtures("stand_in")
def test_a_study_runs_by_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(EVALUATE.format(run=str(RUN)))
    example = runpy.run_path(str(EXAMPLES / "configured_trainers.py"))
    fitted = example["fit"]("llamafactory", str(tmp_path / "w"), [sys.executable, str(script)], 5)
    assert fitted.alone == {"math": 1.0, "chat": 2.0}
    told = fitted.folder({"math": 0.5, "chat": 0.5}) / "llamafactory.yaml"
    text = yaml.safe_load(told.read_text())["interleave_probs"]
    math_share, chat_share = map(float, text.split(","))
    assert math_share / chat_share == pytest.approx(260 / 180, rel=0.05), "of label tokens"
