"""Language models all the way: task runs, posteriors, previews, truths, texts as the metric."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from helpers import toy_settings
from language_helpers import language_model, save_language_model, translation_tasks
from torch import Tensor

from optuna_merge.definition import PosteriorSettings, StudyDefinition
from optuna_merge.fitting import fit
from optuna_merge.models._generation import LanguageModel
from optuna_merge.objective import Objective
from optuna_merge.search import prepare_study
from optuna_merge.tasks import Batch


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_study_of_generated_texts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = translation_tasks(kind)
    definition = StudyDefinition(
        tasks=tasks,
        model=language_model(save_language_model(kind, tmp_path / "model"), tasks),
        finetuning=toy_settings(steps=90, batch_size=32, learning_rate=1e-2, num_rungs=1),
        posterior=PosteriorSettings(examples=32, damping_examples=16),
    )
    written = 0
    write = LanguageModel.write

    def counted(self: LanguageModel, batch: Batch) -> Tensor:
        nonlocal written
        written += 1
        return write(self, batch)

    monkeypatch.setattr(LanguageModel, "write", counted)
    fitted = fit(definition, tmp_path, progress=False)
    # At the end of two task runs and of the finetune at uniform weights, each on both tasks' three
    # batches; not to choose the damping.
    assert written == 3 * 2 * 3
    # The tasks can be learnt, each alone, and then the other one is not.
    for name, run in fitted.runs.items():
        found = {other: e.metric.value for other, e in run.evaluations.items()}
        assert found[name] == max(found.values()) > 2 * min(found.values())
        assert found[name] > {"llama": 60, "t5": 35}[kind]
    alone = fitted.previewer({"same": 1.0, "next": 0.0})
    assert alone.evaluations["same"] == fitted.runs["same"].evaluations["same"]
    weights = {"same": 0.5, "next": 0.5}
    preview = fitted.previewer(weights).evaluations
    assert preview != fitted.previewer({"same": 0.2, "next": 0.8}).evaluations

    study = optuna.create_study(direction=definition.direction)
    prepare_study(study, fitted, second_seed=False)
    study.optimize(Objective(fitted, progress=False), n_trials=1)
    (trial,) = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    assert trial.user_attrs["weight_same"] == 0.5  # uniform weights come first
    assert trial.intermediate_values[0] == pytest.approx(
        sum(e.metric.value for e in preview.values()) / 2
    )
    assert trial.value == pytest.approx(
        (trial.user_attrs["truth_same"] + trial.user_attrs["truth_next"]) / 2
    )
    # Uniform weights are the anchor: the preview there is the truth.
    assert trial.intermediate_values[0] == pytest.approx(trial.value)
