"""YAML definitions: the same study as Python's, and errors that name the line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from helpers import save_bert
from language_helpers import TOKENIZER
from yaml_helpers import same_study, written

from optuna_merge import (
    Constraint,
    FinetuneSettings,
    PosteriorSettings,
    PreviewSettings,
    StudyDefinition,
)
from optuna_merge.definition import TEMPLATES, load_yaml
from optuna_merge.definition._document import read_document
from optuna_merge.definition._schema import check
from optuna_merge.definition._sections import Study
from optuna_merge.models import LastLayers, Matching, from_timm, from_transformers
from optuna_merge.tasks import image_task, macro_f1, text_task

MODEL = "model: {kind: text, name: bert}\n"
TASKS = "tasks: [{name: tone, label: tone}]\n"
DATA = "data: {train: data.csv, validation: 0.25, test: 0.25, max_length: 8}\n"

ROWS = [
    {"text": f"w{i % 6} w{i % 5} : w{i % 3}", "tone": ("bad", "good")[i % 2], "stars": str(i % 11)}
    for i in range(40)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bert(tmp_path / "bert", layers=2)
    TOKENIZER.save_pretrained(tmp_path / "bert")
    write_csv(tmp_path / "data.csv", ROWS)
    return tmp_path


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def splits(rows: dict[str, list[dict[str, str]]], label: str, names: list[str]) -> dict[str, Any]:
    """As a user would make them in Python."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    return {
        split: Dataset.from_dict(
            {"text": [r["text"] for r in part], "label": [names.index(r[label]) for r in part]},
            features=features,
        )
        for split, part in rows.items()
    }


def test_texts_with_heads_of_their_own(folder: Path) -> None:
    path = written(
        folder,
        """
model:
  kind: text
  name: bert
  trainable: {last_layers: 1}
data: {train: train.csv, max_length: 8}
tasks:
  - name: tone
    validation: validation.jsonl
    label: tone
    metric: macro_f1
  - name: stars
    train: train.tsv
    validation: validation.json
    test: validation.json
    label: stars
finetuning: {steps: 5, learning_rate: 5e-3, batch_size: 4, rung_steps: [2, 5], mixed_precision: no}
posterior: {family: per_tensor, examples: 8}
preview: {mixed_precision: bf16}
score: target:tone
constraints:
  - {task: tone, at_least: 0.25}
  - {task: stars, of_alone: 0.9}
""",
    )
    write_csv(folder / "train.csv", ROWS[:30])
    rows = [{"text": row["text"], "tone": row["tone"], "stars": int(row["stars"])} for row in ROWS]
    (folder / "train.tsv").write_text(
        "text\tstars\n" + "".join(f"{row['text']}\t{row['stars']}\n" for row in ROWS[:30])
    )
    (folder / "validation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows[30:]))
    (folder / "validation.json").write_text(json.dumps(rows[30:]))
    body = str(folder / "bert")
    parts = {"train": ROWS[:30], "validation": ROWS[30:]}
    tone = splits(parts, "tone", ["bad", "good"])
    # Numbers by size: 10 stands behind 9.
    stars = splits(parts | {"test": ROWS[30:]}, "stars", [str(i) for i in range(11)])
    tasks = [
        text_task("tone", tone, body, max_length=8, metrics=(macro_f1,)),
        text_task("stars", stars, body, max_length=8),
    ]
    expected = StudyDefinition(
        tasks=tasks,
        model=from_transformers(body, tasks, trainable=LastLayers(1)),
        finetuning=FinetuneSettings(steps=5, learning_rate=5e-3, batch_size=4, rung_steps=(2, 5)),
        posterior=PosteriorSettings(family="per_tensor", examples=8),
        preview=PreviewSettings(mixed_precision="bf16"),
        score="target:tone",
        constraints=[Constraint("tone", at_least=0.25), Constraint("stars", of_alone=0.9)],
    )
    same_study(load_yaml(path), expected)


def test_a_shared_head_and_lora(folder: Path) -> None:
    peft = pytest.importorskip("peft")
    write_csv(folder / "films.csv", ROWS[:10])
    text = """
model: {kind: text, name: bert, lora: {r: 2, target_modules: [query]}, seed: 3}
data: {validation: films.csv, label: tone, max_length: 8}
tasks:
  - {name: books, train: films.csv, head: both}
  - {name: films, train: films.csv, head: both}
constraints: 0.9
"""
    body, names = str(folder / "bert"), ["bad", "good"]
    data = splits({"train": ROWS[:10], "validation": ROWS[:10]}, "tone", names)
    tasks = [text_task(n, data, body, max_length=8, head="both") for n in ("books", "films")]
    adapter = peft.LoraConfig(r=2, lora_alpha=16, target_modules=["query"])
    expected = StudyDefinition(
        tasks=tasks,
        model=from_transformers(body, tasks, adapter=adapter, seed=3),
        constraints=0.9,
    )
    same_study(load_yaml(written(folder, text)), expected)


def test_classes_of_a_shared_head_are_those_of_all_its_tasks(folder: Path) -> None:
    write_csv(folder / "other.csv", [{"text": "w1", "tone": n} for n in ("good", "ugly")])
    text = """
model: {kind: text, name: bert, trainable: {matching: pooler}}
data: {label: tone, max_length: 8}
tasks:
  - {name: one, train: data.csv, validation: data.csv, head: both}
  - {name: two, train: other.csv, validation: other.csv, head: both}
"""
    found = load_yaml(written(folder, text))
    assert [t.label_names for t in found.tasks] == [("bad", "good", "ugly")] * 2
    assert found.tasks[1].data("train").columns["labels"].tolist() == [1, 2]  # type: ignore[attr-defined]
    assert found.model.trainable == Matching("pooler")


def test_shares_are_the_same_rows_for_all_tasks_of_a_file(folder: Path) -> None:
    rows = [row | {"mood": "" if i % 4 else "x" * (1 + i % 8)} for i, row in enumerate(ROWS)]
    write_csv(folder / "data.csv", rows)
    found = load_yaml(
        written(
            folder,
            MODEL + DATA + "tasks: [{name: tone, label: tone}, {name: mood, label: mood}]\n",
        )
    )
    tone, mood = found.tasks
    sizes = [len(tone.data(s)) for s in ("train", "validation", "test")]
    assert sizes == [20, 10, 10]
    assert sum(len(mood.data(s)) for s in ("train", "validation", "test")) == 10
    for split in ("train", "validation", "test"):
        texts = {tuple(row.tolist()) for row in tone.data(split).columns["input_ids"]}  # type: ignore[attr-defined]
        assert {tuple(row.tolist()) for row in mood.data(split).columns["input_ids"]} <= texts  # type: ignore[attr-defined]
    train, rest = (
        {tuple(row.tolist()) for row in tone.data(s).columns["input_ids"]}  # type: ignore[attr-defined]
        for s in ("train", "validation")
    )
    assert train != rest


def test_datasets_of_the_hub_keep_their_classes(folder: Path) -> None:
    names = ["good", "bad"]  # in an order of their own
    data = splits({"train": ROWS[:10], "validation": ROWS[10:]}, "tone", names)
    for split, table in data.items():
        table.to_parquet(folder / "hub" / f"{split}.parquet")
    text = MODEL + "tasks: [{name: tone, dataset: hub, max_length: 8}]\n"
    tasks = [text_task("tone", data, str(folder / "bert"), max_length=8)]
    expected = StudyDefinition(tasks=tasks, model=from_transformers(str(folder / "bert"), tasks))
    same_study(load_yaml(written(folder, text)), expected)


def test_image_folders(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for task in ("left", "right"):
        for name in ("cat", "dog"):
            (tmp_path / task / name).mkdir(parents=True)
            for i in range(4):
                pixels = torch.randint(0, 255, (8, 8), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(tmp_path / task / name / f"{i}.png")
    text = """
model: {kind: image, name: test_vit, pretrained: false, batch_norm: reestimated}
data: {validation: 0.5}
tasks:
  - {name: left, train: left, head: animals}
  - {name: right, train: right, head: animals, augment: true}
"""
    torch.manual_seed(0)
    found = load_yaml(written(tmp_path, text))
    torch.manual_seed(0)
    body = timm.create_model("test_vit", num_classes=0)
    tasks = []
    for task in ("left", "right"):
        files = [
            str(path)
            for name in ("cat", "dog")
            for path in sorted((tmp_path / task / name).glob("*"))
        ]
        import datasets

        order = np.random.default_rng(0).permutation(8).tolist()
        config = timm.data.resolve_data_config({}, model=body)
        features = Features(
            {"image": datasets.Image(mode="RGB"), "label": ClassLabel(names=["cat", "dog"])}
        )
        parts = {"validation": sorted(order[:4]), "train": sorted(order[4:])}
        data = {
            split: Dataset.from_dict(
                {"image": [files[i] for i in rows], "label": [i // 4 for i in rows]},
                features=features,
            )
            for split, rows in parts.items()
        }
        augmented = timm.data.create_transform(**config, is_training=True)
        tasks.append(
            image_task(
                task,
                data,
                timm.data.create_transform(**config),
                train_transform=augmented if task == "right" else None,
                head="animals",
            )
        )
    expected = StudyDefinition(tasks=tasks, model=from_timm(body, tasks, batch_norm="reestimated"))
    same_study(found, expected)


IMAGES = """model: {kind: image, name: test_vit, pretrained: false}
data:
  train: train
  validation: validation
tasks: [{name: shade}]
"""


@pytest.fixture
def shades(tmp_path: Path) -> Path:
    """Folders of grey images of 16 bits, dark and bright."""
    from PIL import Image

    for split in ("train", "validation"):
        for name, value in (("bright", 50_000), ("dark", 6_000)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((8, 8), value + i, dtype=np.uint16)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_images_of_sixteen_bits_are_not_white(shades: Path) -> None:
    batch = load_yaml(written(shades, IMAGES)).tasks[0].data("train")[[0, 3]]
    assert batch["labels"].tolist() == [0, 1]
    bright, dark = batch["pixel_values"].mean((1, 2, 3)).tolist()
    assert bright - dark == pytest.approx((50_000 - 6_000) / 65_535 / 0.5, abs=0.01)


def test_hidden_files_and_folders_are_no_images(shades: Path) -> None:
    expected = load_yaml(written(shades, IMAGES)).describe()["tasks"]
    dark = shades / "train" / "dark"
    for hidden in (".ipynb_checkpoints", "__MACOSX", "dark/.thumbnails", "bright/.cache/a"):
        (shades / "train" / hidden).mkdir(parents=True)
        name = "._0.png" if hidden == "__MACOSX" else "0.png"
        shutil.copy(dark / "0.png", shades / "train" / hidden / name)
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
        (dark / name).write_bytes(b"no image")
    (dark / "folder.png").mkdir()
    found = load_yaml(written(shades, IMAGES))
    assert found.tasks[0].label_names == ("bright", "dark")
    assert found.describe()["tasks"] == expected


def test_a_body_that_is_not_pretrained_is_the_same_in_every_process(shades: Path) -> None:
    path = written(shades, IMAGES)
    first = load_yaml(path).describe()
    torch.rand(3)  # another process has drawn other numbers
    assert load_yaml(path).describe() == first
    other = IMAGES.replace("pretrained: false", "pretrained: false, seed: 1")
    assert load_yaml(written(shades, other)).describe()["body"] != first["body"]


def test_a_broken_image_is_named_with_its_line(shades: Path) -> None:
    broken = shades / "validation" / "dark" / "1.png"
    broken.write_bytes(broken.read_bytes()[:45])
    with pytest.raises(ValueError) as error:
        load_yaml(written(shades, IMAGES))
    assert "study.yaml:4:15: task 'shade', validation data: can't read" in str(error.value)
    assert "dark/1.png: " in str(error.value)


def test_images_are_of_no_dataset_of_the_hub(shades: Path) -> None:
    text = IMAGES.replace("tasks: [{name: shade}]", "tasks: [{name: shade, dataset: mnist}]")
    with pytest.raises(ValueError, match="5:32: task 'shade': dataset: is for models of kind: te"):
        load_yaml(written(shades, text))


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_template_is_a_definition(folder: Path, kind: str) -> None:
    study = check(read_document(written(folder, TEMPLATES[kind])))
    assert isinstance(study, Study)
    assert study.model.kind == kind
    assert [task.name for task in study.tasks] == ["topic", "tone"]
    # So are the lines that are optional.
    uncommented = [
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") and ":" in line else line
        for line in TEMPLATES[kind].splitlines()
        if not line.startswith(("# A study", "# Every", "# optional", "# For", "# At"))
    ]
    text = "\n".join(uncommented).replace("constraints: [{", "ignored: [{")
    with pytest.raises(ValueError) as told:
        check(read_document(written(folder, text)))
    lines = str(told.value).splitlines()
    assert len(lines) == 1, lines  # the second choice of constraints
    assert "ignored: unknown key 'ignored'" in lines[0]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["study.yaml: expected a mapping with model, tasks and more"]),
        ("- a\n", ["study.yaml: expected a mapping"]),
        ("model: [\n", ["study.yaml:2:1: not YAML"]),
        ("model: 1\nmodel: 2\n", ["study.yaml:2:1: the key 'model' stands here a second time"]),
        ("model: !!python/object:os.system {}\n", ["study.yaml:1:8: not YAML"]),
        ("model: !!int x\n", ["study.yaml: not YAML: a value does not fit its tag"]),
        ("model: !!bool x\n", ["study.yaml: not YAML: a value does not fit its tag"]),
        ("model: !!binary aGk=\n", ["study.yaml: expected texts, numbers, lists and mappings"]),
        (
            "model: 1\ntasks: \0\n",
            ["study.yaml:2: not YAML: the sign '\\x00' may not stand in it"],
        ),
        ("model: &m [*m]\n", ["study.yaml: a value contains itself"]),
        (
            "model: &m {kind: text}\ntasks: [{name: a, <<: *m}]\n",
            ["study.yaml:2:9: tasks[0]: unknown key 'kind'; there are dataset"],
        ),
        (MODEL, ["study.yaml:1:1: the key 'tasks' is missing"]),
        (
            MODEL + TASKS + "finetunning: {}\n",
            ["study.yaml:3:1: finetunning: unknown key 'finetunning'; did you mean 'finetuning'?"],
        ),
        (
            MODEL + TASKS + "finetuning:\n  steps: 3\n  learning_rat: 5e-5\n",
            ["study.yaml:5:3: finetuning.learning_rat: unknown key 'learning_rat'; did"],
        ),
        (
            MODEL + TASKS + "finetuning:\n  steps: many\n  batch_size: 2.5\n",
            [
                "study.yaml:4:10: finetuning.steps: input should be a valid integer, got 'many'",
                "study.yaml:5:15: finetuning.batch_size: input should be a valid integer, got 2.5",
            ],
        ),
        (
            MODEL + TASKS + "finetuning:\n  steps: 3\n  warmup: 7.0\n",
            ["study.yaml:5:11: finetuning.warmup: warmup is a fraction of the steps"],
        ),
        (
            MODEL + TASKS + "posterior: {family: diagonl}\n",
            ["study.yaml:3:21: posterior.family: family must be one of isotropic, per_tensor"],
        ),
        (
            MODEL + TASKS + "constraints:\n  - {task: tone}\n",
            [
                "study.yaml:4:5: constraints[0]: a",
                "needs exactly one of of_alone, at_least and at_most",
            ],
        ),
        (
            "model:\n  kind: text\n  name: bert\n  trainable: last\n" + TASKS,
            ["study.yaml:4:14: model.trainable: input should be 'all'"],
        ),
        (
            "model: {kind: text, name: bert, pretrained: false}\n" + TASKS,
            ["study.yaml:1:45: model.pretrained: pretrained is for models of kind: image"],
        ),
        (MODEL + "tasks: []\n", ["study.yaml:2:8: tasks: list should have at least 1 item"]),
        (
            MODEL + TASKS,
            ["study.yaml:2:9: task 'tone' has no training data; give train: or dataset:"],
        ),
        (
            MODEL + "data: {train: data.csv}\n" + TASKS,
            ["study.yaml:3:9: task 'tone' has no validation data"],
        ),
        (
            MODEL + "data:\n  train: dat.csv\n  validation: 0.2\n" + TASKS,
            ["study.yaml:3:10: task 'tone', train data: no file", "dat.csv; expected a .csv"],
        ),
        (
            MODEL + DATA + "tasks:\n  - name: tone\n    label: tonne\n",
            ["study.yaml:5:12: task 'tone', train data: no column 'tonne' among ['text', 'tone'"],
        ),
        (
            MODEL + DATA.replace("train:", "text: words, train:") + TASKS,
            ["study.yaml:2:14: task 'tone', train data: no column 'words' among"],
        ),
        (
            MODEL + DATA.replace("0.25", "2.0", 1) + TASKS,
            ["study.yaml:2:37: data.validation: input should be less than 1, got 2.0"],
        ),
        (
            MODEL + DATA.replace("0.25", "0.001", 1) + TASKS,
            ["study.yaml:2:37: task 'tone': 0.001 of 40 examples leaves too few"],
        ),
        (
            MODEL + "data: {train: missing.csv}\ntasks: [{name: to ne, label: tone}]\n",
            ["study.yaml:3:9: task name must be letters, digits"],
        ),
        (
            MODEL + DATA + TASKS + "score: best\n",
            ["study.yaml:4:8: score must be one of"],
        ),
        (
            MODEL + DATA + TASKS + "constraints: [{task: tune, at_least: 1.0}]\n",
            ["study.yaml:4:14: constraint 'tune_at_least_1': no task 'tune'"],
        ),
        (
            "model: {kind: text, name: no-such-body}\n" + DATA + TASKS,
            ["study.yaml:1:27: model 'no-such-body'"],
        ),
        (
            "model: {kind: image, name: no_such_net}\n"
            "tasks: [{name: a, train: bert, validation: 0.5}]\n",
            ["study.yaml:2:26: task 'a', train data: no images in subfolders of"],
        ),
    ],
)
def test_errors_name_the_line(folder: Path, text: str, told: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        load_yaml(written(folder, text))
    for part in told:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "text,tone\na,b,c\n", "row 1 has not 2 cells"),
        ("a.csv", "text,tone\na,\n", "no row has a label in 'tone'"),
        ("a.csv", "text,tone\n", "no rows"),
        ("a.json", "{'a': 1}", "not JSON"),
        ("a.json", "[1]", "expected objects"),
        ("a.xlsx", "", "expected a .csv"),
    ],
)
def test_bad_tables_are_named(folder: Path, name: str, text: str, told: str) -> None:
    (folder / name).write_text(text)
    path = written(folder, MODEL + f"data: {{train: {name}, validation: data.csv}}\n" + TASKS)
    with pytest.raises(ValueError, match=told) as error:
        load_yaml(path)
    assert name in str(error.value) or "'tone'" in str(error.value)


def test_semicolons_and_a_byte_order_mark_as_spreadsheets_write_them(folder: Path) -> None:
    lines = [f'"{row["text"]}, or so";{row["tone"]}' for row in ROWS]
    (folder / "a.csv").write_text("\ufefftext;tone\n" + "\n".join(lines), encoding="utf-8")
    path = written(folder, MODEL + "data: {train: a.csv, validation: 0.5}\n" + TASKS)
    assert load_yaml(path).tasks[0].label_names == ("bad", "good")


def test_a_table_in_another_encoding_is_named(folder: Path) -> None:
    (folder / "a.csv").write_bytes("text,tone\ncaf\u00e9,good\n".encode("latin-1"))
    path = written(folder, MODEL + "data: {train: a.csv, validation: 0.5}\n" + TASKS)
    with pytest.raises(ValueError, match=r"a\.csv is not UTF-8 .* save it in that encoding"):
        load_yaml(path)


def test_a_class_that_chance_puts_into_a_share_alone_is_left_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = MODEL + "data: {train: data.csv, validation: 0.5}\n" + TASKS
    rows = [{"text": f"w{i % 9}", "tone": "good" if i % 2 else "bad"} for i in range(12)]
    shown = []
    for at in range(12):
        rare = [row | {"tone": "ugly"} if i == at else row for i, row in enumerate(rows)]
        write_csv(folder / "data.csv", rare)
        caplog.clear()
        (task,) = load_yaml(written(folder, text)).tasks
        sizes = len(task.data("train")), len(task.data("validation"))
        told = "1 of 6 rows of the validation data are left out" in caplog.text
        shown.append((sizes, task.num_outputs, told))
    assert sorted(set(shown)) == [((6, 5), 2, True), ((6, 6), 3, False)]


def test_a_path_may_begin_at_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    text = MODEL.replace("bert", "~/bert") + DATA.replace("data.csv", "~/data.csv") + TASKS
    (folder / "elsewhere").mkdir()
    assert load_yaml(written(folder / "elsewhere", text)).tasks


def test_a_task_of_one_class_is_named(folder: Path) -> None:
    write_csv(folder / "other.csv", [{"text": "w1", "tone": "bad"}] * 4)
    path = written(folder, MODEL + "data: {train: other.csv, validation: 0.5}\n" + TASKS)
    with pytest.raises(ValueError, match="task 'tone': all training rows are of the class 'bad'"):
        load_yaml(path)


def test_a_label_that_was_never_trained_is_named(folder: Path) -> None:
    write_csv(folder / "other.csv", [{"text": "w1", "tone": "ugly"}])
    path = written(folder, MODEL + "data: {train: data.csv, validation: other.csv}\n" + TASKS)
    with pytest.raises(ValueError, match="validation data: the label 'ugly' does not occur"):
        load_yaml(path)
