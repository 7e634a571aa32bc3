"""Several posterior families on the same truths: which one previews a study best."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from helpers import toy_definition
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

import optuna_merge as om
from optuna_merge.calibration import FAMILY_PREVIEWS, format_calibration, study_calibration
from optuna_merge.definition import PosteriorSettings
from optuna_merge.exceptions import DefinitionMismatchError

POSTERIOR = PosteriorSettings(examples=16, damping_examples=20, chunk_size=8)
ISOTROPIC = replace(POSTERIOR, family="isotropic")
LOW_RANK = replace(POSTERIOR, family="low_rank", rank=2)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> om.FittedStudy:
    definition = toy_definition(posterior=POSTERIOR, compare=(ISOTROPIC, LOW_RANK))
    return om.fit(definition, tmp_path_factory.mktemp("work"), progress=False)


def optimized(fitted: om.FittedStudy, n_trials: int) -> optuna.Study:
    study = om.open_study(
        "s",
        optuna.storages.InMemoryStorage(),
        fitted.definition.directions,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=om.PromotionPruner(fraction=1.0, warmup=0),
    )
    om.prepare_study(study, fitted)
    study.optimize(om.Objective(fitted, progress=False), n_trials=n_trials)
    return study


def test_each_truth_is_previewed_by_each_family(fitted: om.FittedStudy, tmp_path: Path) -> None:
    study = optimized(fitted, 6)
    alone = om.fit(toy_definition(posterior=ISOTROPIC), tmp_path, progress=False)
    for trial in study.trials:
        weights = {task: trial.user_attrs[f"weight_{task}"] for task in ("red", "blue")}
        found = trial.user_attrs.get(FAMILY_PREVIEWS)
        if max(weights.values()) == 1:
            assert found is None  # every merge of a task alone is its own run
            continue
        assert list(found) == ["diagonal", "isotropic", "low_rank"]
        assert found["diagonal"]["score"] == trial.intermediate_values[0]
        assert found["diagonal"]["metrics"]["red"] == trial.user_attrs["preview_red"]
        expected = alone.previewer(weights).evaluations
        metrics = {task: expected[task].metric.value for task in weights}
        assert found["isotropic"]["metrics"] == metrics
        assert found["isotropic"]["score"] == alone.score(metrics)
    report = om.make_report(study, fitted, test=False)
    text = om.format_report(report)
    assert "low_rank" in text and "posteriors: " in text
    assert report["calibration"]["compared"]["own"] == "diagonal"
    assert json.loads(json.dumps(report["calibration"], allow_nan=False)) is not None


def test_posteriors_come_from_the_same_task_runs(tmp_path: Path) -> None:
    om.fit(toy_definition(posterior=POSTERIOR), tmp_path, progress=False)
    runs = sorted((tmp_path / "finetunes").iterdir())
    both = om.fit(
        toy_definition(posterior=POSTERIOR, compare=(ISOTROPIC,)), tmp_path, progress=False
    )
    assert sorted((tmp_path / "finetunes").iterdir()) == runs
    assert set(both.compared) == {"isotropic"}
    assert {path.exists() for path in both.files} == {True}
    # What is compared is part of the definition: the attribute means the same for all workers.
    study = optimized(both, 1)
    only = om.fit(toy_definition(posterior=POSTERIOR), tmp_path, progress=False)
    assert only.parts["posteriors"] == both.parts["posteriors"]
    with pytest.raises(DefinitionMismatchError, match="compare"):
        om.prepare_study(study, only)


def test_a_pareto_study_compares_the_tasks(tmp_path: Path) -> None:
    definition = toy_definition(score="pareto", posterior=POSTERIOR, compare=(ISOTROPIC,))
    fitted = om.fit(definition, tmp_path, progress=False)
    study = optimized(fitted, 4)
    found = study.trials[0].user_attrs[FAMILY_PREVIEWS]
    assert [row["score"] for row in found.values()] == [None, None]
    assert "isotropic" in format_calibration(study_calibration(study, ["red", "blue"]).as_json())


def study_of(families: Mapping[str, list[float]], truths: list[float]) -> optuna.Study:
    study = optuna.create_study(direction="maximize")
    for index, truth in enumerate(truths):
        w = (index + 1) / (len(truths) + 1)
        previews = {
            name: {"score": values[index], "metrics": {"a": values[index], "b": values[index]}}
            for name, values in families.items()
        }
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=truth,
                params={"w_a": w, "w_b": 1 - w},
                distributions=dict.fromkeys(("w_a", "w_b"), FloatDistribution(0, 1)),
                intermediate_values={0: next(iter(families.values()))[index]},
                user_attrs={FAMILY_PREVIEWS: previews, "truth_a": truth, "truth_b": truth},
            )
        )
    return study


def noisy(truths: list[float], noise: float, seed: int = 0) -> list[float]:
    drawn = np.random.default_rng(seed).normal(0, noise, len(truths))
    return (np.array(truths) + drawn).tolist()


TRUTHS = (np.random.default_rng(9).permutation(20) / 20).tolist()


def test_the_family_that_ranks_best_is_named() -> None:
    study = study_of({"diagonal": noisy(TRUTHS, 2), "isotropic": noisy(TRUTHS, 0.01)}, TRUTHS)
    found = study_calibration(study, ["a", "b"]).compared
    assert found is not None and found.lead is not None
    assert (found.own, found.best) == ("diagonal", "isotropic")
    assert found.lead.low > 0
    assert found.advice.startswith("isotropic ranks the truths better than diagonal")
    assert "not for sure" not in found.advice
    error = np.abs(np.array(noisy(TRUTHS, 0.01)) - TRUTHS).mean()
    assert found.families["isotropic"].error == pytest.approx(error)


def test_a_lead_that_may_be_chance_is_said_to_be() -> None:
    families = {"diagonal": noisy(TRUTHS, 0.1, 1), "isotropic": noisy(TRUTHS, 0.1, 3)}
    found = study_calibration(study_of(families, TRUTHS), ["a", "b"]).compared
    assert found is not None
    if found.best == found.own:
        families = dict(reversed(families.items()))
        found = study_calibration(study_of(families, TRUTHS), ["a", "b"]).compared
        assert found is not None
    assert found.best != found.own
    assert "not for sure" in found.advice


def test_where_none_ranks_truths_no_family_is_advised() -> None:
    families = {"diagonal": noisy(TRUTHS, 50, 2), "isotropic": noisy(TRUTHS, 50, 3)}
    study = study_of(families, TRUTHS)
    found = study_calibration(study, ["a", "b"]).compared
    assert found is not None and "more task runs" in found.advice
    few = study_calibration(study_of(families, TRUTHS[:3]), ["a", "b"]).compared
    assert few is not None and few.best is None and "too few truths" in few.advice


def test_the_own_family_may_be_the_best() -> None:
    families = {"diagonal": noisy(TRUTHS, 0.01), "isotropic": noisy(TRUTHS, 2)}
    found = study_calibration(study_of(families, TRUTHS), ["a", "b"]).as_json()
    assert found["compared"]["best"] == "diagonal" and found["compared"]["lead"] is None
    assert "posteriors: diagonal, this study's posterior family" in format_calibration(found)


@pytest.mark.parametrize(
    ("compare", "message"),
    [
        ((POSTERIOR,), "'diagonal' more than once"),
        ((replace(ISOTROPIC, components=2),), "needs 2 runs of each task, but posterior=diagonal"),
        ((replace(POSTERIOR, estimator="ivon"),), "estimator='ivon' takes the curvature"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    compare: tuple[PosteriorSettings, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        toy_definition(posterior=POSTERIOR, compare=compare)
