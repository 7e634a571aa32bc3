"""The noise of one finetune, which is no part of what is expected on average."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from study_helpers import fitted_toys, toy_study

import optuna_merge as om
from optuna_merge.calibration import GainEstimate, Noise, finetune_noise
from optuna_merge.reports import write_html
from optuna_merge.reports._verdict import judge
from optuna_merge.trials import DEFINITION, SCORE, read_study

NAMES = ("red", "blue")


def noise_of(study: optuna.Study) -> dict[str | None, Noise]:
    findings = read_study(study)
    return finetune_noise(study, findings)


def add(study: optuna.Study, weight: float, truth: float | None, **attrs: Any) -> None:
    """A weighting, finetuned where it has a truth; both tasks have the score's metrics."""
    weights = dict(zip(NAMES, (weight, 1 - weight)))
    kinds = {"weight": weights, "preview": dict.fromkeys(NAMES, weight)}
    if truth is not None:
        kinds["truth"] = dict.fromkeys(NAMES, truth)
    named = {f"{kind}_{n}": v for kind, of in kinds.items() for n, v in of.items()}
    study.add_trial(
        create_trial(
            state=TrialState.PRUNED if truth is None else TrialState.COMPLETE,
            value=truth,
            params={f"w_{n}": w for n, w in weights.items()},
            distributions={f"w_{n}": FloatDistribution(0, 1) for n in NAMES},
            intermediate_values={0: weight},
            user_attrs=named | attrs,
        )
    )


def test_weightings_that_were_finetuned_twice_tell_it() -> None:
    study = optuna.create_study()
    repeats = {0.25: (0.5, 0.53, 0.47), 0.5: (0.6, 0.64)}
    for weight, truths in repeats.items():
        for truth in truths:
            add(study, weight, truth)
    add(study, 0.5, 0.9, truth_reused=True)  # no finetune of its own
    add(study, 0.75, 0.7)
    found = noise_of(study)[SCORE]
    squares = sum(np.square(np.array(t) - np.mean(t)).sum() for t in repeats.values())
    assert found.std == pytest.approx(math.sqrt(squares / 3))
    assert (found.source, found.repeated) == ("repeats", 2)
    assert found.told == "± 0.0294, from 2 weightings that were finetuned more than once"


def test_one_run_done_again_to_the_last_bit_tells_nothing() -> None:
    study = optuna.create_study()
    add(study, 0.25, 0.5)
    add(study, 0.25, 0.5)
    found = noise_of(study)
    assert found[SCORE] == Noise(None, "unknown")
    assert found[SCORE].told == "not known, no weighting was finetuned twice"


def test_a_share_of_the_sampling_error_where_nothing_was_finetuned_twice() -> None:
    study = optuna.create_study()
    for i, weight in enumerate((0.2, 0.4, 0.6)):
        add(study, weight, weight, preview_red_se=(0.03, 0.04, 0.05)[i])
    add(study, 0.9, None, preview_red_se=0.5)  # not of a truth
    found = noise_of(study)
    error = math.sqrt((0.03**2 + 0.04**2 + 0.05**2) / 3)
    assert found["red"].std == pytest.approx(math.sqrt(0.4) * error)
    assert found["red"].source == "sampling"
    assert found["blue"].source == "unknown" == found[SCORE].source


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("mean", math.hypot(0.03, 0.04) / 2),
        ("worst", 0.04),  # blue is far below red
        ("worst_relative", 0.04 / 0.5),
        ("relative", math.hypot(0.03 / 0.9, 0.04 / 0.5) / 2),
        ("target:red", 0.03),
        ("a_function_of_mine", None),
    ],
)
def test_the_sampling_error_of_a_score_follows_from_the_tasks(
    score: str, expected: float | None
) -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(DEFINITION, json.dumps({"score": score}))
    errors = {"preview_red_se": 0.03, "preview_blue_se": 0.04}
    add(study, 0.5, 0.6, truth_blue=0.2, **errors)
    if "relative" in score:
        assert noise_of(study)[SCORE].source == "unknown"  # nothing is known of the tasks alone
    add(study, 1.0, 0.9, baseline="red", truth_blue=0.2, **errors)
    add(study, 0.0, 0.9, baseline="blue", truth_red=1.8, truth_blue=0.5, **errors)
    found = noise_of(study)[SCORE]
    if expected is None:
        assert found.source == "unknown"
    else:
        assert found.source == "sampling"
        assert found.std == pytest.approx(math.sqrt(0.4) * expected, rel=0.05)


def test_repeats_are_pooled_with_the_sampling_error_as_a_weak_prior() -> None:
    study = optuna.create_study()
    add(study, 0.5, 0.50, preview_red_se=0.02)
    add(study, 0.5, 0.56, preview_red_se=0.02, repeat=1)
    found = noise_of(study)["red"]
    assert found.std == pytest.approx(math.sqrt((3 * 0.4 * 0.02**2 + 0.06**2 / 2) / 4))
    assert (found.source, found.repeated, found.freedom) == ("repeats", 1, 4)
    for i in range(100):  # of many repeats the prior says nothing any more
        for repeat in (0, 1):
            truth = 0.3 + 0.05 * (-1) ** repeat
            add(study, 0.1 + i / 200, truth, preview_red_se=0.02, repeat=repeat)
    assert noise_of(study)["red"].std == pytest.approx(0.05 * math.sqrt(2), rel=0.05)


def test_a_gain_within_the_noise_is_no_evidence() -> None:
    study = optuna.create_study(direction="maximize")
    add(study, 0.5, 0.5, baseline="uniform")
    add(study, 0.25, 0.52)
    findings = read_study(study)
    noise = Noise(0.01, "repeats", 1)

    def doubted(chance: float | None) -> bool:
        estimate = None if chance is None else GainEstimate(0.02, 0.01, 0.01, chance, 2)
        verdict = judge(findings, noise=noise, estimate=estimate)
        assert any("is picked by" in w for w in verdict.warnings) == (chance is None)
        return any("No evidence of a gain" in w for w in verdict.warnings)

    assert [doubted(chance) for chance in (None, 0.95, 0.8)] == [False, False, True]


def test_report_text_and_page_show_it_beside_what_is_expected(tmp_path: Path) -> None:
    fitted = fitted_toys(tmp_path / "work", NAMES)
    study = toy_study(fitted, n_trials=6)
    report = json.loads(json.dumps(om.make_report(study, fitted), allow_nan=False))
    noise, text = report["noise"], om.format_report(report)
    errors = [t.user_attrs["preview_red_se"] for t in study.trials if "truth_red" in t.user_attrs]
    sampling = math.sqrt(np.mean(np.square(errors)))
    assert noise["tasks"]["red"]["std"] == pytest.approx(math.sqrt(0.4) * sampling)
    assert set(noise["tasks"]) == set(NAMES)
    assert noise["score"]["std"] > 0  # a mean of metrics has their sampling errors' share
    for name, found in {"score": noise["score"], **noise["tasks"]}.items():
        assert f"Noise of one finetune, {name}: {found['told']}" in text.splitlines()
    write_html(tmp_path / "page.html", study, report)
    page = (tmp_path / "page.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    for shown, found in zip(data["noise"], [noise["score"], *noise["tasks"].values()]):
        assert shown == [pytest.approx(found["std"], rel=1e-5), found["told"]]
