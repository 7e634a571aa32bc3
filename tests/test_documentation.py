"""What people read: examples of docstrings; Python, output, flags and links of the pages."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import inspect
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import datasets
import optuna
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from helpers import save_bert
from language_helpers import TOKENIZER, chat_tokenizer, save_language_model, turns
from PIL import Image
from trainer_helpers import MakeTrainer, classification_data
from typer.main import get_command

import optuna_merge
import optuna_merge as om
from optuna_merge.cli import app
from optuna_merge.definition import CommandDefinition, load_yaml, read_definition


def fenced(text: str, language: str = "") -> list[str]:
    """The blocks of a language in a Markdown text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    return [block for word, block in blocks if word == language]


ROOT = Path(optuna_merge.__file__).resolve().parents[1]
FOLDERS = ("studies", "optuna_merge", "examples", ".github")
TEXTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder, pattern in ((".", "*.md"), *((f, "**/*.md") for f in FOLDERS))
    for path in (ROOT / folder).glob(pattern)
    if not {"workdir", ".cache"} & set(path.parts)
)
EXAMPLES = sorted(
    path for path in (ROOT / "optuna_merge").rglob("*.py") if ">>> " in path.read_text()
)
GUIDES = [name for name in TEXTS if name == "README.md" or name.startswith("optuna_merge/")]
HOW_TO = [*GUIDES, *(name for name in TEXTS if name.startswith("examples/tutorials/"))]
BLOCKS = [
    pytest.param(block, id=f"{Path(name).parent.name or 'home'}-{number}")
    for name in GUIDES
    for number, block in enumerate(fenced((ROOT / name).read_text(), "python"))
    if "adam_second_moments(" not in block  # tests/posteriors/test_adam.py runs these
]


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
            entry = rf"\[`{name}`\]\[" if path == "optuna_merge" else rf"::: {path}.{name}\n"
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
    """What stands in for the hub in the study of a definition in Python."""
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


def existing_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, str], Any]:
    from transformers import AutoModelForSequenceClassification

    path = folder / "classifier"
    body = save_bert(folder / "body")
    AutoModelForSequenceClassification.from_pretrained(body).save_pretrained(path)
    rows = torch.arange(12).reshape(4, 3) % 6
    batch = {"input_ids": rows, "attention_mask": torch.ones_like(rows)}
    return {}, {"path": path, "loader": [batch | {"labels": torch.tensor([0, 1, 0, 1])}]}


def untied_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], Any]:
    """An adapter of the output layer of a model whose embeddings are tied."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path = save_language_model("llama", folder / "model")
    model = AutoModelForCausalLM.from_pretrained(path)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(path)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"]))
    adapted.save_pretrained(folder / "adapter", save_embedding_layers=False)
    return {}, {"path": path, "adapter": folder / "adapter"}


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


def given_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], Any]:
    """Checkpoints of a Trainer, the last of which keeps the state of Adam."""
    train, validation = classification_data("math", "chat")
    for path, task in (("checkpoints", "math"), ("run", "chat")):
        torch.manual_seed(0)  # of one base
        trainer = MakeTrainer(validation)(str(folder / path))
        trainer.train_dataset = train[task]
        trainer.train()
        trainer.save_model(str(folder / path / "math"))
    (folder / "run" / "checkpoint-6").rename(folder / "run" / "checkpoint-500")
    return {}, {"make_trainer": MakeTrainer(validation), **train}


def fitted_program(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, str], Any]:
    train, validation = classification_data("math", "chat")
    averaging = om.PosteriorSettings(family="isotropic")
    fitted = om.from_trainer(MakeTrainer(validation), train, posterior=averaging, progress=False)
    study = om.open_search(fitted, "mine", second_seed=False)
    return {"n_trials=40": "n_trials=3"}, {"fitted": fitted, "study": study}


NEEDS = {
    "Collector(": fitted_program,
    "GivenRun(": given_runs,
    "om.StudyDefinition(": own_study,
    "om.from_trainer(": own_trainer,
    "om.from_command(": own_command,
    "language_task(": language_tasks,
    "merge(": merging,
    "squared_gradients(": existing_checkpoint,
    "tie_word_embeddings": untied_base,
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_python_of_the_pages(
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


def test_the_yaml_of_readme_is_a_definition(tmp_path: Path) -> None:
    (block,) = fenced((ROOT / "README.md").read_text(), "yaml")
    save_bert(tmp_path / "body", layers=2)
    TOKENIZER.save_pretrained(tmp_path / "body")
    body = "sentence-transformers/all-MiniLM-L6-v2"
    assert body in block
    (tmp_path / "study.yaml").write_text(block.replace(body, "body"))
    rows = [f"w{i % 6} w{i % 5},{i % 2},{'ab'[i % 2]},{'xyz'[i % 3]}" for i in range(60)]
    (tmp_path / "posts.csv").write_text("\n".join(["text,sentiment,author,topic", *rows, ""]))
    definition = load_yaml(tmp_path / "study.yaml")
    assert [task.name for task in definition.tasks] == ["sentiment", "author", "topic"]
    assert definition.finetuning.steps == 60


def test_the_yaml_of_the_definitions_page(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    text = (ROOT / "optuna_merge" / "definition" / "README.md").read_text()
    images, language, command, runs = fenced(text, "yaml")
    for task in ("fruits", "flags"):
        for label in ("a", "b"):
            (tmp_path / "images" / task / label).mkdir(parents=True)
            for i in range(10):
                picture = Image.new("RGB", (32, 32), (25 * i, 0, 0))
                picture.save(tmp_path / "images" / task / label / f"{i}.png")
    assert "resnet18.a1_in1k" in images
    tiny = images.replace("resnet18.a1_in1k", "test_vit, pretrained: false")
    (tmp_path / "images.yaml").write_text(tiny)
    assert load_yaml(tmp_path / "images.yaml").names == ("fruits", "flags")
    save_language_model("llama", tmp_path / "llama")
    chat_tokenizer().save_pretrained(tmp_path / "llama")
    rows = {
        "question": ["w1", "w2"] * 10,
        "solution": ["w3", "w4"] * 10,
        "text": ["w1 w2", "w2 w3"] * 10,
        "messages": [turns("w1", "w2")] * 20,
    }
    table = Dataset.from_dict(rows)
    for name in ("math.jsonl", "chat.jsonl"):
        table.to_json(tmp_path / name)
    table.to_parquet(tmp_path / "prose.parquet")
    body = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert body in language
    (tmp_path / "study.yaml").write_text(language.replace(body, "llama"))
    assert load_yaml(tmp_path / "study.yaml").names == ("math", "chat", "prose")
    for task in ("math", "chat"):
        (tmp_path / "checkpoints" / task).mkdir(parents=True)
    (tmp_path / "command.yaml").write_text(command + runs)
    found = read_definition(tmp_path / "command.yaml")
    assert isinstance(found, CommandDefinition)
    assert found.given["runs"].keys() == {"math", "chat"}


@pytest.mark.parametrize(
    ("study", "stored"), [("desks", "seed-0.txt"), ("text", "own-data.txt")], ids=str
)
def test_the_outputs_in_readme_are_those_of_stored_runs(study: str, stored: str) -> None:
    blocks = [b for b in fenced((ROOT / "README.md").read_text()) if "Best task weights" in b]
    assert len(blocks) == 2
    shown = blocks[study == "text"]
    lines = (ROOT / "studies" / study / "results" / stored).read_text().splitlines()
    for line in shown.splitlines():
        assert any(kept.startswith(line.removesuffix("...").rstrip()) for kept in lines), line


def test_readme_is_short_and_leads_to_every_guide() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert {n for n in GUIDES if n != "README.md"} <= set(re.findall(r"\]\(([^)#]+)", text))


@pytest.mark.parametrize("name", HOW_TO)
def test_files_that_a_page_names_are_there(name: str) -> None:
    named = re.findall(
        r"(?<![\w./-])(?:studies|tests|examples)/[\w./-]*\w", (ROOT / name).read_text()
    )
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("name", HOW_TO)
def test_flags_that_a_page_names_are_there(name: str) -> None:
    text = re.sub(r"`[^`]*(torchrun|chromium|pip|mkdocs)[^`]*`", "", (ROOT / name).read_text())
    group: Any = get_command(app)
    parameters = [p for command in group.commands.values() for p in command.params]
    flags = {flag for p in (*parameters, *group.params) for flag in (*p.opts, *p.secondary_opts)}
    flags |= {"--direction", "--install-completion", "--help", "--debug"}  # Optuna's, Typer's
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - flags == set()


def wrong_keywords(text: str, site: Any) -> list[str]:
    """Calls in a page's inline code with arguments that the public function of this name lacks."""
    public: dict[str, list[Any]] = {}
    for path, module in site.public_modules().items():
        for name in site.public_names(module):
            public.setdefault(name, []).append(getattr(importlib.import_module(path), name))
    wrong = []
    for code in re.findall(
        r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    ):
        try:
            calls = [n for n in ast.walk(ast.parse(code, mode="eval")) if isinstance(n, ast.Call)]
        except SyntaxError:
            continue
        for call in calls:
            given = {keyword.arg for keyword in call.keywords}
            things = public.get(ast.unparse(call.func).rpartition(".")[2], [])
            if things and not any(given <= inspect.signature(t).parameters.keys() for t in things):
                wrong.append(code)
    return wrong


@pytest.mark.parametrize("name", HOW_TO)
def test_arguments_that_a_page_names_are_there(name: str, site: Any) -> None:
    assert wrong_keywords((ROOT / name).read_text(), site) == []


def test_arguments_that_are_not_there_are_found(site: Any) -> None:
    text = "Give `om.Objective(fitted, role=...)` or `om.run_trials(..., role=...)`, not `f(x`."
    assert wrong_keywords(text, site) == ["om.Objective(fitted, role=...)"]


def test_every_extra_is_told_of() -> None:
    text = (ROOT / "optuna_merge" / "commands" / "README.md").read_text().partition("## Extras")[2]
    told = set(re.findall(r"`([\w-]+)`", "\n".join(re.findall(r"^\| ([^|]*)\|", text, re.M))))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert told == set(project["optional-dependencies"])


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


def test_links_to_folders_lead_to_pages(site: Any) -> None:
    """The site has no listings of files: a folder that a page links to must have a page."""
    made = site.pages()
    found = [
        (page, link)
        for page, text in made.items()
        for link in site.LINK.findall(text)
        if (folder := (ROOT / page).parent.joinpath(link).resolve()).is_dir()
        and f"{folder.relative_to(ROOT).as_posix()}/README.md" not in made
    ]
    assert found == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    text = "# A `b`, c\n[x](#a-b-c) [x](#b) [x](other.md) ![x](a.png) [x](https://x.org/)\n"
    (tmp_path / "a.md").write_text(text)
    assert broken_links(tmp_path / "a.md") == ["#b", "other.md", "a.png"]
