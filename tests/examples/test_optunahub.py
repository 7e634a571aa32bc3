"""The packages for OptunaHub load as its library loads them, and do what their READMEs say."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState

HUB = Path(__file__).resolve().parents[2] / "examples" / "optunahub"
PACKAGES = ("samplers/simplex_gp", "pruners/promotion")


def load(package: str) -> Any:
    """As `optunahub.load_local_module` does; by that where it is installed."""
    try:
        import optunahub
    except ModuleNotFoundError:
        name = f"optunahub_registry.package.{package.replace('/', '.')}"
        sys.modules.setdefault("optunahub_registry", types.ModuleType("optunahub_registry"))
        spec = importlib.util.spec_from_file_location(name, HUB / package / "__init__.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
    return optunahub.load_local_module(package, registry_root=str(HUB))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_what_the_registry_asks_for(package: str) -> None:
    folder = HUB / package
    _, front, page = (folder / "README.md").read_text().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert set(fields) == {
        "author",
        "title",
        "description",
        "tags",
        "optuna_versions",
        "license",
    }
    assert package.split("/")[0].removesuffix("s") in fields["tags"]
    assert fields["license"] == "MIT License"
    assert (folder / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026")
    assert re.findall(r"^## (.*)", page, re.M)[:2] == ["Abstract", "Class or Function Names"]
    for name in load(package).__all__:
        assert f"`{name}(" in page
    assert not any("optuna_merge" in path.read_text() for path in folder.glob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_its_examples_run(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {package: load(package)}
    module: Any = types.ModuleType("optunahub")
    module.load_module = lambda package: modules[package]
    monkeypatch.setitem(sys.modules, "optunahub", module)
    readme = (HUB / package / "README.md").read_text()
    (block,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    for text in (block, (HUB / package / "example.py").read_text()):
        found = {"__name__": "__main__"}
        exec(text, found)
        assert isinstance(found["study"], optuna.Study)


NAMES = ["a", "b", "c", "d"]
BEST = [0.7, 0.3, 0.0, 0.0]


def mixture(trial: optuna.Trial) -> float:
    shares = [trial.suggest_float(name, 0, 1) for name in NAMES]
    return sum((s / sum(shares) - b) ** 2 for s, b in zip(shares, BEST))


def mixture_study(seed: int, n_trials: int, storage: Any = None) -> optuna.Study:
    sampler = load("samplers/simplex_gp").SimplexGPSampler(NAMES, seed=seed)
    study = optuna.create_study(
        study_name="mixture", storage=storage, sampler=sampler, load_if_exists=True
    )
    study.optimize(mixture, n_trials=n_trials)
    return study


def test_the_sampler_finds_a_face() -> None:
    study = mixture_study(0, 30)
    assert study.best_value < 2e-3
    assert all(sum(trial.params.values()) == pytest.approx(1.0) for trial in study.trials)
    assert [t.params["a"] for t in study.trials[:3]] == [0.25, 1.0, 0.0]
    others = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    others.optimize(mixture, n_trials=30)
    assert study.best_value < others.best_value / 3


def test_a_study_that_is_stopped_goes_on_as_it_would_have() -> None:
    storage = optuna.storages.InMemoryStorage()
    mixture_study(1, 9, storage)
    stopped = mixture_study(1, 4, storage)
    assert [t.params for t in stopped.trials] == [t.params for t in mixture_study(1, 13).trials]


def test_running_trials_spread_out_and_foreign_trials_count() -> None:
    study = mixture_study(2, 9)
    study.enqueue_trial(dict(zip(NAMES, [1.0, 0.5, 0.0, 0.0])))
    study.optimize(mixture, n_trials=1)
    asked = [study.ask() for _ in range(4)]
    points = [tuple(t.suggest_float(name, 0, 1) for name in NAMES) for t in asked]
    assert len(set(points)) == 4


def test_values_that_are_equal_or_wild_do_no_harm() -> None:
    for values in ([1.0] * 12, [*range(10), 1e12, float("inf")]):
        sampler = load("samplers/simplex_gp").SimplexGPSampler(NAMES, seed=0)
        study = optuna.create_study(sampler=sampler)
        for value in values:
            trial = study.ask()
            shares = [trial.suggest_float(name, 0, 1) for name in NAMES]
            assert sum(shares) == pytest.approx(1.0)
            study.tell(trial, value)


def test_what_the_sampler_refuses() -> None:
    sampler = load("samplers/simplex_gp").SimplexGPSampler
    for names in (["a"], ["a", "a"], "ab"):
        with pytest.raises(ValueError, match="at least two different names"):
            sampler(names)
    study = optuna.create_study(sampler=sampler(["a", "b"]))
    with pytest.raises(ValueError, match=r"suggest_float\('a', 0, 1\)"):
        study.ask().suggest_float("a", 0.6, 1)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler(["a", "b"]))
    with pytest.raises(ValueError, match="one objective"):
        study.ask().suggest_float("a", 0, 1)


def previewed(trial: optuna.Trial) -> float:
    x = trial.suggest_float("x", 0, 1)
    if "promoted_from" not in trial.user_attrs:
        trial.report(x, step=0)
    if trial.should_prune():
        raise optuna.TrialPruned
    return x


def test_the_best_previews_are_promoted_whenever_they_came() -> None:
    pruner = load("pruners/promotion").PromotionPruner(0.25, n_warmup_previews=4)
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(direction="maximize", pruner=pruner, sampler=sampler)
    study.optimize(previewed, n_trials=50)
    copies = [t for t in study.trials if "promoted_from" in t.user_attrs]
    previews = [t for t in study.trials if "promoted_from" not in t.user_attrs]
    assert len(previews) + len(copies) >= 50 and len(copies) == len(previews) // 4
    assert {t.state for t in previews} == {TrialState.PRUNED}
    best = sorted(previews, key=lambda t: -t.params["x"])[:5]
    assert {t.number for t in best} <= {t.user_attrs["promoted_from"] for t in copies}
    assert study.best_value == best[0].params["x"]


def test_a_minimised_study_a_cap_and_a_baseline() -> None:
    pruner = load("pruners/promotion").PromotionPruner(0.5, n_warmup_previews=2, max_promotions=2)
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=1))
    study.enqueue_trial({"x": 0.5}, user_attrs={"baseline": "half"})
    study.optimize(previewed, n_trials=20)
    assert study.trials[0].state == TrialState.COMPLETE
    copies = [t for t in study.trials if "promoted_from" in t.user_attrs]
    assert len(copies) == 2


def test_the_second_copy_of_one_trial_is_pruned() -> None:
    pruner = load("pruners/promotion").PromotionPruner(0.5, n_warmup_previews=2)
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(2):
        study.enqueue_trial({"x": 0.1}, user_attrs={"promoted_from": 7})
    study.optimize(previewed, n_trials=2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE, TrialState.PRUNED]


@pytest.mark.parametrize("arguments", [{"fraction": 0}, {"n_warmup_previews": 0}])
def test_what_the_pruner_refuses(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        load("pruners/promotion").PromotionPruner(**arguments)
