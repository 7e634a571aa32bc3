"""When a search stops: what is expected of the best weights and of another finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial
from study_helpers import fitted_toys

import optuna_merge as om
from optuna_merge.pruners import Prospect, prospect, stop_reason
from optuna_merge.reports import write_html
from optuna_merge.search import baseline_weights
from optuna_merge.surrogate import Aim
from optuna_merge.trials import REPEAT

NAMES = ("red", "blue")
REDS = np.linspace(0.05, 0.95, 19)


def study_of(gain: float, n_promoted: int = 3, *, slope: float = 0.0) -> optuna.Study:
    """Baselines, previews and promoted finetunes of a score that rises with the weight of red.

    Validation examples have a sampling error of .02, and uniform weights differ by .006.
    """
    study = optuna.create_study(direction="maximize", pruner=om.PromotionPruner())
    rng = np.random.default_rng(0)

    def add(red: float, truth: float | None, **attrs: Any) -> None:
        seen = 0.5 + slope * (red - 0.5)
        metrics = {"preview": seen, "preview_se": 0.02} | (
            {} if truth is None else {"truth": truth}
        )
        named = {
            f"{kind.removesuffix('_se')}_{n}{'_se' if kind.endswith('_se') else ''}": value
            for kind, value in metrics.items()
            for n in NAMES
        }
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if truth is None else TrialState.COMPLETE,
                value=truth,
                params={"w_red": red, "w_blue": 1 - red},
                distributions={f"w_{n}": FloatDistribution(0, 1) for n in NAMES},
                intermediate_values={0: seen},
                user_attrs=named | attrs,
            )
        )

    study.set_user_attr("optuna_merge_definition", '{"score": "mean"}')
    for name, weights in baseline_weights(NAMES).items():
        add(weights["red"], 0.5 if name == "uniform" else 0.49, baseline=name)
    add(0.5, 0.506, baseline="uniform", **{REPEAT: 1})
    for i, red in enumerate(rng.permutation(REDS)):
        truth = 0.503 + gain * (red - 0.5) + 0.003 * rng.normal()
        add(float(red), float(truth) if i < n_promoted else None)
    return study


def test_what_is_flat_stops_and_what_is_not_goes_on() -> None:
    flat, steep = study_of(0.0), study_of(0.4, slope=0.4)
    found = prospect(flat)
    assert found is not None and found.is_flat
    assert max(found.gain, 0) + found.improvement < 0.5 * found.noise
    other = prospect(steep)
    assert other is not None and not other.is_flat and other.gain > other.noise
    for study, stops in ((flat, True), (steep, False)):
        assert stop_reason(study) is None
        study.pruner = om.PromotionPruner(stop_when_flat=True)
        assert (stop_reason(study) is not None) == stops
    assert str(stop_reason(flat)).startswith("the score is flat: the best weights are expected")


def test_a_promising_preview_is_something_to_go_on_for() -> None:
    """Two truths that gain nothing, and previews that are true and have not been tried."""
    assert Prospect(0.001, 0.001, 0.01).is_flat
    assert not Prospect(0.001, 0.02, 0.01).is_flat
    assert Prospect(-0.5, 0.001, 0.01).is_flat, "that uniform weights are best hides nothing"


@pytest.mark.parametrize("n_promoted", [0, 1])
def test_nothing_is_said_before_two_promoted_truths(n_promoted: int) -> None:
    assert prospect(study_of(0.0, n_promoted)) is None


def test_it_is_a_pure_function_of_the_trials() -> None:
    study = study_of(0.1)
    again = optuna.create_study(direction="maximize")
    again.set_user_attr("optuna_merge_definition", '{"score": "mean"}')
    again.add_trials(study.get_trials())
    assert prospect(study) == prospect(again)


def test_until_is_a_share_of_the_noise() -> None:
    study = study_of(0.4, slope=0.4)
    found = prospect(study)
    assert found is not None
    share = found.improvement / found.noise
    for factor, stops in ((0.9, False), (1.1, True)):
        study.pruner = om.PromotionPruner(until=share * factor)
        assert (stop_reason(study) is not None) == stops
    with pytest.raises(ValueError, match="until is 0, expected a share of a finetune's noise"):
        om.PromotionPruner(until=0)


def at_least(blue: float) -> Any:
    return lambda metrics: blue - metrics[..., 1:]


def reds(metrics: Any) -> Any:
    return metrics[..., 0]


def constrained(study: optuna.Study, red: float, *, done: bool, **attrs: Any) -> None:
    """A trial of metrics that are linear in the weights; blue must have .58 or more."""
    rng = np.random.default_rng(int(1000 * red))
    metrics = {"red": 0.4 + 0.6 * red, "blue": 0.4 + 0.6 * (1 - red)}
    study.enqueue_trial({"w_red": red, "w_blue": 1 - red}, user_attrs=attrs)
    trial = study.ask()
    for name in NAMES:
        trial.suggest_float(f"w_{name}", 0, 1)
        for kind, value in (("preview", metrics[name]), ("preview_se", 0.02)):
            of = f"preview_{name}_se" if kind == "preview_se" else f"{kind}_{name}"
            trial.set_user_attr(of, value)
    trial.report(metrics["red"], 0)
    truth = {n: value + 0.002 * rng.normal() for n, value in metrics.items()}
    for name, value in truth.items() if done else ():
        trial.set_user_attr(f"truth_{name}", value)
    trial.set_constraint("blue", 0.58 - (truth if done else metrics)["blue"])
    if done:
        study.tell(trial, truth["red"])
    else:
        study.tell(trial, state=TrialState.PRUNED)


def test_what_cannot_be_feasible_is_nothing_to_gain_and_what_can_is() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr("optuna_merge_definition", '{"score": "target:red"}')
    for name, weights in baseline_weights(NAMES).items():
        constrained(study, weights["red"], done=True, baseline=name)
    constrained(study, 0.5, done=True, baseline="uniform", **{REPEAT: 1})
    for red in (0.8, 0.75, 0.72, 0.48):
        constrained(study, red, done=True)
    for red in REDS:
        constrained(study, float(red), done=False)
    assert prospect(study) is None, "who does not know the constraints says nothing"
    aim = Aim((True,), reds, at_least(0.58))
    found = prospect(study, aim=aim)
    assert found is not None and not found.is_flat
    assert 0.06 < found.improvement < 0.13, "red may go from .5 to .7, its metric from .7 to .82"
    study.pruner = om.PromotionPruner(
        stop_when_flat=True, score=reds, constraints=at_least(0.58), seed=0
    )
    assert stop_reason(study) is None
    tight = prospect(study, aim=Aim((True,), reds, at_least(0.7)))
    assert tight is not None and tight.improvement < 0.01, "nothing beyond uniform weights"


def test_a_pareto_study_is_never_flat_and_has_no_until(tmp_path: Path) -> None:
    fitted = fitted_toys(tmp_path, NAMES, score="pareto")
    study = om.open_search(fitted, "front", seed=0)
    assert prospect(study) is None
    with pytest.raises(ValueError, match=r"until is 0\.5, but the study has an objective a task"):
        om.open_search(fitted, "front", until=0.5)


class Always(om.PromotionPruner):
    """Wants to stop as soon as anything was finetuned."""

    def stop_reason(self, study: optuna.Study) -> str | None:
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return "enough is enough" if done else None


@pytest.mark.parametrize("by", ["optimize", "run_trials"])
def test_workers_stop(tmp_path: Path, by: str, caplog: pytest.LogCaptureFixture) -> None:
    fitted = fitted_toys(tmp_path, NAMES)
    study = om.open_search(fitted, "toys", seed=0)
    study.pruner = Always(seed=0)
    objective = om.Objective(fitted, progress=False)
    caplog.set_level("INFO")
    if by == "optimize":
        study.optimize(objective, n_trials=20)
        done = 5  # the baselines, and the preview after them
    else:
        assert om.run_trials(study, objective, workdir=tmp_path, n_trials=20) == 1
        assert om.run_trials(study, objective, workdir=tmp_path, n_trials=20) == 0
        done = 1
    finished = [t for t in study.trials if t.state.is_finished()]
    assert len(finished) == done
    assert "the search stops: enough is enough" in caplog.text


def test_text_and_page_say_flat(tmp_path: Path) -> None:
    fitted = fitted_toys(tmp_path, NAMES)
    study = study_of(0.0)
    for key, value in om.open_search(fitted, "toys").user_attrs.items():
        study.set_user_attr(key, value)
    report = om.make_report(study, fitted)
    assert report["verdict"]["flat"]
    assert "The score is flat: the best weights are expected to gain" in om.format_report(report)
    write_html(tmp_path / "page.html", study)
    assert "The score is flat: the best weights" in (tmp_path / "page.html").read_text()
