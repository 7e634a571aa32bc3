"""What people read: docstrings and their examples, README's Python, links in Markdown files."""

from __future__ import annotations

import doctest
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import datasets
import optuna
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from helpers import save_bert
from language_helpers import TOKENIZER, save_language_model
from trainer_helpers import MakeTrainer, classification_data

import optuna_merge
import optuna_merge as om

ROOT = Path(optuna_merge.__file__).resolve().parents[1]
TEXTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder, pattern in ((".", "*.md"), ("studies", "**/*.md"), ("optuna_merge", "**/*.md"))
    for path in (ROOT / folder).glob(pattern)
    if not {"workdir", ".cache"} & set(path.parts)
)
EXAMPLES = sorted(
    path for path in (ROOT / "optuna_merge").rglob("*.py") if ">>> " in path.read_text()
)
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def site() -> Any:
    """The module that makes the documentation's pages."""
    pytest.importorskip("griffe")
    path = ROOT / ".ci" / "docs" / "pages.py"
    spec = importlib.util.spec_from_file_location("documentation_pages", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_docstring_and_a_place_in_the_reference(site: Any) -> None:
    modules = site.public_modules()
    assert {"optuna_merge", "optuna_merge.merging", "optuna_merge.trials"} <= modules.keys()
    pages = site.pages()
    for path, module in modules.items():
        assert module.docstring, path
        page = pages[f"reference/{path.partition('.')[2] or 'README'}.md"]
        found = importlib.import_module(path)
        for name in set(site.public_names(module)) - {"__version__"}:
            assert hasattr(found, name), f"{path} has no {name}"
            thing = module[name].final_target if module[name].is_alias else module[name]
            assert thing.docstring, f"{path}.{name} has no docstring"
            entry = rf"\| \[`{name}`\]" if path == "optuna_merge" else rf"::: {path}.{name}\n"
            assert re.search(entry, page), f"{path}.{name} is not in the reference"
            if thing.is_class and not thing.bases:  # what overrides has the docstring above it
                bare = [
                    member.path
                    for inner, member in thing.members.items()
                    if not inner.startswith("_") and member.is_function and not member.docstring
                ]
                assert not bare, "without docstrings"


def test_a_public_name_without_a_docstring_is_found(site: Any, tmp_path: Path) -> None:
    (tmp_path / "a_module.py").write_text('"""Text."""\n\n\ndef f():\n    pass\n\n\nX = 1\n')
    module = site.griffe.load("a_module", search_paths=[tmp_path])
    assert site.public_names(module) == ["f"]
    assert not module["f"].docstring


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem.strip("_"))
@pytest.mark.filterwarnings("ignore:The reported value is ignored")
def test_the_examples_of_docstrings(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        found = doctest.testmod(importlib.import_module(name), verbose=False)
    finally:
        optuna.logging.set_verbosity(verbosity)
    assert found.attempted > 0 == found.failed


def own_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], Any]:
    """What stands in for the hub in the study of "Your own tasks and model"."""
    save_bert(folder / "body")
    TOKENIZER.save_pretrained(folder / "body")
    features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    rows = {"text": [f"w{i % 6} w{i % 5}" for i in range(24)], "label": [i % 2 for i in range(24)]}
    splits = dict.fromkeys(("train", "validation"), Dataset.from_dict(rows, features=features))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: splits)
    smaller = {
        '"distilbert-base-uncased"': repr(str(folder / "body")),
        "max_length=128": "max_length=8",
        "steps=500, batch_size=32": "steps=4, batch_size=8",
        "n_trials=100": "n_trials=4",
    }
    return smaller, {}


def language_tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], Any]:
    rows = {c: ["w1 w2", "w2 w3"] for c in ("article", "text", "title")}
    splits = dict.fromkeys(("train", "validation"), Dataset.from_dict(rows))
    name = save_language_model("llama", folder / "model")
    return {}, {"tokenizer": TOKENIZER, "news": splits, "stories": splits, "name": name}


def merging(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], Any]:
    return {}, {"tasks": [({"w": torch.rand(2)}, {"w": torch.ones(2)}) for _ in range(2)]}


def own_trainer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], Any]:
    train, validation = classification_data("math", "chat")
    return {"n_trials=40": "n_trials=3"}, {"make_trainer": MakeTrainer(validation), **train}


def own_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], Any]:
    """`train.sh` and `evaluate.py` of a script that trains in a moment."""
    script = f"{sys.executable} {ROOT / 'examples' / 'tiny' / 'command.py'}"
    (folder / "train.sh").write_text(
        f'mkdir -p "$2"; {script} train "$1" "$2/model.safetensors" '
        f'"{{\\"math\\": $3, \\"chat\\": $4}}" "$5" 30\n'
    )
    (folder / "evaluate.py").write_text(
        f"import os, sys\nos.system(f'{script} evaluate {{sys.argv[1]}}/model.safetensors')\n"
    )
    return {"python evaluate.py": f"{sys.executable} evaluate.py", "=1000": "=30"}, {}


NEEDS = {
    "om.StudyDefinition(": own_study,
    "om.from_trainer(": own_trainer,
    "om.from_command(": own_command,
    "language_task(": language_tasks,
    "merge(": merging,
}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[-2][:30])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_python_of_readme(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    prepare = next(found for line, found in NEEDS.items() if line in block)
    smaller, names = prepare(tmp_path, monkeypatch)
    for text, replacement in smaller.items():
        assert text in block
        block = block.replace(text, replacement)
    exec(block, names | {"om": om})
    if prepare in (own_study, own_trainer):
        assert "Best task weights: " in capsys.readouterr().out


def anchors(path: Path) -> set[str]:
    """Anchors of a Markdown file's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    found: set[str] = set()
    for title in re.findall(r"^#+ (.*)$", text, re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(
            next(s for s in (slug, *(f"{slug}-{i}" for i in range(1, 99))) if s not in found)
        )
    return found


def broken_links(path: Path) -> list[str]:
    """Relative links of a Markdown file to what is not there."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    broken = []
    for link in re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", text):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        place = path.parent / target if target else path
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    assert broken_links(ROOT / name) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    text = "# A `b`, c\n[x](#a-b-c) [x](#b) [x](other.md) ![x](a.png) [x](https://x.org/)\n"
    (tmp_path / "a.md").write_text(text)
    assert broken_links(tmp_path / "a.md") == ["#b", "other.md", "a.png"]
