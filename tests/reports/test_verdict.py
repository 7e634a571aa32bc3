"""One reading of a study: text, page, tables, notes and JSON say the same of it."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers import toy_definition, toy_task
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from optuna_dashboard import get_note
from study_helpers import fitted_toys, study_by_hand, toy_study
from torch import Tensor

import optuna_merge as om
from optuna_merge.calibration import study_calibration
from optuna_merge.reports import update_dashboard, write_csv, write_html
from optuna_merge.reports._verdict import Gain, judge
from optuna_merge.tasks import Measurement, Metric, accuracy
from optuna_merge.trials import (
    PROMOTED_FROM,
    SCORE,
    fail_and_requeue,
    read_study,
    suggest_weights,
    task_directions,
)

NAMES = ("red", "blue")


def _mistakes(outputs: Tensor, labels: Tensor) -> Measurement:
    right = accuracy.function(outputs, labels)
    return Measurement(1 - right.value, right.standard_error)


MISTAKES = Metric("mistakes", _mistakes, greater_is_better=False, condense=accuracy.condense)


def fitted_mistakes(folder: Path, **changes: Any) -> om.FittedStudy:
    """Two toy tasks whose metric is the share of mistakes."""
    tasks = [toy_task(n, i + 1, metrics=(MISTAKES,)) for i, n in enumerate(NAMES)]
    return om.fit(toy_definition(tasks, **changes), folder, progress=False)


@dataclass
class Told:
    """What a study's outputs say."""

    report: dict[str, Any]
    text: str
    page: str
    data: dict[str, Any]
    tables: dict[str, list[dict[str, str]]]
    note: str


def told(study: optuna.Study, fitted: om.FittedStudy, folder: Path) -> Told:
    report = json.loads(json.dumps(om.make_report(study, fitted), allow_nan=False))
    write_html(folder / "page.html", study, report)
    page = (folder / "page.html").read_text()
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert data is not None
    files = write_csv(folder / "tables", study, report)
    update_dashboard(study)
    return Told(
        report,
        om.format_report(report),
        page,
        json.loads(data[1]),
        {f.stem: list(csv.DictReader(f.open(newline=""))) for f in files},
        get_note(study),
    )


def finetuned(weights: Sequence[float], metrics: Sequence[float], score: float) -> Any:
    """A promoted trial by hand."""
    attrs: dict[str, Any] = {}
    for kind, values in (("weight", weights), ("preview", metrics), ("truth", metrics)):
        attrs |= {f"{kind}_{n}": v for n, v in zip(NAMES, values)}
    return create_trial(
        state=TrialState.COMPLETE,
        value=score,
        params={f"w_{n}": w for n, w in zip(NAMES, weights)},
        distributions={f"w_{n}": FloatDistribution(0, 1) for n in NAMES},
        intermediate_values={0: score},
        user_attrs=attrs,
    )


def test_what_is_minimised_is_better_where_it_is_lower(tmp_path: Path) -> None:
    fitted = fitted_mistakes(tmp_path / "work")
    study = toy_study(fitted, n_trials=6)
    study.add_trial(finetuned((0.75, 0.25), (-0.5, -0.25), -0.375))  # better than any real one
    found = told(study, fitted, tmp_path)
    number = len(study.trials) - 1
    assert study.best_trial.number == number == found.report["best"]["trial"]
    uniform = next(t for t in study.trials if t.user_attrs.get("baseline") == "uniform")
    gain = uniform.value + 0.375
    assert gain > 0
    verdict = found.report["verdict"]
    assert verdict["gain_over_uniform"] == {"validation": pytest.approx(gain), "test": None}
    alone = fitted.alone["blue"] + 0.25
    assert verdict["gain_over_alone"]["blue"]["validation"] == pytest.approx(alone)
    sentence = f"Gain over uniform weights (by how much the score is lower): {gain:+.4f}"
    assert verdict["answer"][0].startswith(sentence)
    for told_sentence in (*verdict["answer"], *verdict["warnings"]):
        assert told_sentence in found.text.splitlines()
        assert told_sentence in found.page
    assert sentence in found.note.replace("\\", "")
    assert "lower is better" in found.text.splitlines()[0]
    assert "lower is better" in found.page and "lower is better" in found.note
    assert found.report["maximize"] == {"score": False, "tasks": dict.fromkeys(NAMES, False)}
    assert found.data["maximize"] == [False, False, False]
    assert found.data["best"] == number
    best = {r["quantity"]: r for r in found.tables["metrics"] if r["finetune"] == "best"}
    assert float(best["score (mean)"]["gain_over_uniform"]) == pytest.approx(gain)
    blue = uniform.user_attrs["truth_blue"] + 0.25
    assert float(best["blue"]["gain_over_uniform"]) == pytest.approx(blue)
    assert {r["direction"] for r in best.values()} == {"minimize"}
    assert {r["direction"] for r in found.tables["calibration"]} == {"minimize"}


def test_a_study_alone_says_the_same_of_its_front(tmp_path: Path) -> None:
    fitted = fitted_toys(tmp_path / "work", NAMES, score="pareto")
    study = toy_study(fitted, n_trials=5)
    found = told(study, fitted, tmp_path)
    front = found.report["front"]
    assert front["reference_point"] == fitted.reference_point
    write_html(tmp_path / "alone.html", study)
    answer = found.report["verdict"]["answer"]
    volumes = (front["hypervolume"], front["hypervolume_of_baselines"])
    assert answer[1] == "Hypervolume {:.6g}, of the baselines alone {:.6g}.".format(*volumes)
    for sentence in answer:
        assert sentence in found.text.splitlines()
        assert sentence in (tmp_path / "alone.html").read_text()
        assert sentence in found.note


def test_a_score_of_another_direction_than_the_metrics(tmp_path: Path) -> None:
    """The study says of each task what is better, to those that have no definition, too."""
    score = om.Score("right", lambda metrics, alone: 1 - sum(metrics.values()) / len(metrics))
    fitted = fitted_mistakes(tmp_path / "work", score=score)
    study = toy_study(fitted, n_trials=5)
    study.add_trial(finetuned((0.75, 0.25), (-0.5, -0.25), 1.375))
    assert task_directions(study, NAMES) == {"red": False, "blue": False}
    findings = read_study(study)
    assert findings.maximize == {SCORE: True, "red": False, "blue": False}
    found = told(study, fitted, tmp_path)
    alone = found.report["verdict"]["gain_over_alone"]["red"]["validation"]
    assert alone == pytest.approx(fitted.alone["red"] + 0.5)
    assert found.report["verdict"]["gain_over_uniform"]["validation"] > 0
    assert judge(findings).gain_over_alone["red"].validation == pytest.approx(alone)
    write_html(tmp_path / "alone.html", study)
    assert "red (by how much it is lower) +" in (tmp_path / "alone.html").read_text()


def test_previews_of_a_minimised_metric_are_judged_by_its_lowest_ones() -> None:
    study = study_by_hand(NAMES, 12, 12)
    found = []
    for greater in (True, False):
        study.set_user_attr("greater_is_better", dict.fromkeys(NAMES, greater))
        found.append(study_calibration(study, NAMES).tasks["red"])
    upwards, downwards = found
    truths = [(t.user_attrs["preview_red"], t.user_attrs["truth_red"]) for t in study.trials]
    judged = [
        pair
        for pair, t in zip(truths, study.trials)
        if 0 < t.user_attrs["weight_red"] < 1
    ]  # fmt: skip
    values = [truth for _, truth in judged]
    assert upwards.argmax_regret == max(values) - max(judged)[1]
    assert downwards.argmax_regret == min(judged)[1] - min(values)
    assert upwards.bias == downwards.bias  # truth minus preview, whatever is better


def test_a_preview_that_was_tried_again_counts_once_everywhere(tmp_path: Path) -> None:
    fitted = fitted_mistakes(tmp_path / "work")
    study = toy_study(fitted, n_trials=5)
    before = len({tuple(t.params.values()) for t in study.trials})
    objective = om.Objective(fitted, progress=False)
    study.enqueue_trial({"w_red": 0.3, "w_blue": 0.7})
    killed = study.ask()  # its worker dies before there is a preview
    suggest_weights(killed, NAMES)
    assert fail_and_requeue(study, killed.number)
    study.enqueue_trial({"w_red": 0.3, "w_blue": 0.7})  # the preview of equal weights is taken
    while study.get_trials(states=[TrialState.WAITING], deepcopy=False):
        study.optimize(objective, n_trials=1)
    clone = next(t for t in study.trials if t.system_attrs.get("retry_history"))
    assert clone.number != killed.number and clone.user_attrs["preview_seconds"] > 0
    assert any("preview_taken_from" in t.user_attrs for t in study.trials)
    found = told(study, fitted, tmp_path)
    counts = found.report["counts"]
    assert counts["previews"] == before + 1
    assert (counts["failed"], counts["retried"]) == (1, 1)
    n_truths = sum(t.state == TrialState.COMPLETE for t in study.trials)
    assert counts["truths"] == n_truths == counts["promoted"] + counts["baselines"]
    assert f"Previews {before + 1}, finetunes {n_truths} " in found.text
    assert "failed 1 (1 tried again)" in found.text
    assert f"{before + 1} previews, {n_truths} finetunes" in found.page
    assert found.data["n_previews"] == before + 1
    assert sum(point[-1] for point in found.data["points"]) == before + 1
    assert f"{before + 1} weightings previewed, {n_truths} finetuned" in found.note
    rows = [r for r in found.tables["weightings"] if int(r["trial"]) >= killed.number]
    assert len(rows) == 2, "the one that was tried again, and the one that took its preview"
    seconds = sum(
        t.user_attrs["preview_seconds"]
        for t in study.trials
        if "preview_seconds" in t.user_attrs and PROMOTED_FROM not in t.user_attrs
    )
    assert found.report["cost"]["preview_seconds"] == pytest.approx(seconds)


def test_a_copy_that_gives_way_does_not_hide_the_truth() -> None:
    study = optuna.create_study(direction="maximize")
    preview = finetuned((0.5, 0.5), (0.4, 0.6), 0.5)
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED,
            params=preview.params,
            distributions=preview.distributions,
            intermediate_values={0: 0.5},
            user_attrs={k: v for k, v in preview.user_attrs.items() if "truth" not in k},
        )
    )
    for state in (TrialState.COMPLETE, TrialState.PRUNED):
        copy = finetuned((0.5, 0.5), (0.4, 0.6), 0.5)
        study.add_trial(
            create_trial(
                state=state,
                value=0.7 if state == TrialState.COMPLETE else None,
                params=copy.params,
                distributions=copy.distributions,
                intermediate_values={0: 0.5},
                user_attrs=copy.user_attrs | {PROMOTED_FROM: 0},
            )
        )
    findings = read_study(study)
    (outcome,) = findings.outcomes
    assert (outcome.first, outcome.trial, outcome.truth) == (0, 1, 0.7)
    assert findings.best is outcome
    assert (findings.counts.previews, findings.counts.truths) == (1, 1)


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1.0), ("minimize", -1.0)])
def test_gains_on_test_data_respect_the_direction(direction: str, sign: float) -> None:
    study = study_by_hand(NAMES, 12, 0, direction=direction)
    for baseline, score in (("uniform", 0.5), (None, 0.5 + 0.2 * sign)):
        trial = finetuned((0.5, 0.5) if baseline else (0.7, 0.3), (score, score), score)
        study.add_trial(trial)
        if baseline is not None:
            last = study.trials[-1].number
    study = with_baseline(study, last)
    findings = read_study(study)
    best, uniform = findings.best, findings.uniform
    assert best is not None and uniform is not None
    for better in (0.125, -0.125):
        tested = {best.trial: {SCORE: 0.5 + better * sign}, uniform.trial: {SCORE: 0.5}}
        verdict = judge(findings, tested=tested)
        assert verdict.gain_over_uniform == Gain(pytest.approx(0.2), better)
        assert f"{better:+.4f} on test data" in verdict.answer[0]
        doubted = "On test data uniform weights are as good or better." in verdict.warnings
        assert doubted == (better < 0)


def with_baseline(study: optuna.Study, number: int) -> optuna.Study:
    """A copy in which this trial is uniform weights' baseline."""
    copy = optuna.create_study(directions=study.directions)
    for trial in study.get_trials():
        if trial.number == number:
            trial.user_attrs["baseline"] = "uniform"
        copy.add_trial(trial)
    return copy


def test_equal_to_uniform_weights_is_no_gain() -> None:
    study = optuna.create_study(direction="minimize")
    study.add_trial(finetuned((0.7, 0.3), (0.25, 0.25), 0.25))
    study.add_trial(finetuned((0.5, 0.5), (0.25, 0.25), 0.25))
    findings = read_study(with_baseline(study, 1))
    assert findings.best is not None and findings.best.trial == 0
    verdict = judge(findings)
    assert verdict.gain_over_uniform == Gain(0.0, None)
    assert verdict.answer == ["No weights beat uniform ones in this study: use uniform weights."]
