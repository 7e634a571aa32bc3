"""Merges that the finetune at uniform weights corrects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers import same, toy_definition, toy_task

import optuna_merge as om
from optuna_merge.calibration import study_calibration
from optuna_merge.exceptions import DefinitionMismatchError, TrainingDivergedError
from optuna_merge.finetuning import FinetuneStore
from optuna_merge.previews import Anchor, PreviewSettings, anchor_share
from optuna_merge.trials import uniform_weights

UNIFORM = {"red": 0.5, "blue": 0.5}
WEIGHTS = {"red": 0.2, "blue": 0.8}


def fitted(tmp_path: Path, heads: str = "merged", **changes: Any) -> om.FittedStudy:
    settings = PreviewSettings(heads=heads, head_examples=24, **changes)  # type: ignore[arg-type]
    return om.fit(toy_definition(preview=settings), tmp_path, progress=False)


def truth(study: om.FittedStudy) -> dict[str, torch.Tensor]:
    """Parameters of the finetune at uniform weights."""
    run = study.store.find(uniform_weights(study.names), study.definition.finetuning)
    assert run is not None
    return run.parameters()


def test_shares() -> None:
    assert anchor_share([1 / 3, 1 / 3, 1 / 3]) == pytest.approx(1)
    assert anchor_share([0.5, 0.5, 0.0]) == anchor_share([1.0, 0.0]) == 0
    assert anchor_share([0.2, 0.8]) == pytest.approx(0.8)
    inside = [anchor_share([a, 1 - a]) for a in (0.05, 0.2, 0.4, 0.5)]
    assert inside == sorted(inside)


def test_a_merge_at_uniform_weights_is_the_finetune_there(tmp_path: Path) -> None:
    study = fitted(tmp_path)
    found, expected = study.previewer.merged(uniform_weights(study.names)), truth(study)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)
    plain = study.previewer.anchored(None).merged(UNIFORM)
    assert not same(plain, found)


def test_elsewhere_a_share_of_what_is_missing_at_uniform_weights(tmp_path: Path) -> None:
    study = fitted(tmp_path)
    plain = study.previewer.anchored(None)
    missing = {n: t - plain.merged(UNIFORM)[n] for n, t in truth(study).items()}
    found, merge = study.previewer.merged(WEIGHTS), plain.merged(WEIGHTS)
    for name, tensor in missing.items():
        torch.testing.assert_close(found[name], merge[name] + 0.8 * tensor)


def test_a_task_alone_stays_its_own_run(tmp_path: Path) -> None:
    for heads in ("merged", "resolved"):
        study = fitted(tmp_path, heads)
        for name, run in study.runs.items():
            alone = {n: float(n == name) for n in study.names}
            assert study.preview(alone).metrics[name] == run.evaluations[name].metric


def test_heads_are_solved_for_the_corrected_body(tmp_path: Path) -> None:
    study = fitted(tmp_path, "resolved")
    found, expected = study.previewer.merged(UNIFORM), truth(study)
    for name in study.model.shared_names():
        torch.testing.assert_close(found[name], expected[name])
    for name in study.model.own_names("red"):
        assert not torch.equal(found[name], expected[name])
        assert not torch.equal(found[name], study.runs["red"].parameters()[name])


def test_any_share(tmp_path: Path) -> None:
    study = fitted(tmp_path)
    nothing = study.previewer.anchored(Anchor(truth(study), lambda weights: 0.0))
    assert same(nothing.merged(WEIGHTS), study.previewer.anchored(None).merged(WEIGHTS))


def test_previews_do_not_depend_on_those_before(tmp_path: Path) -> None:
    study = fitted(tmp_path, "resolved")
    first = study.preview(WEIGHTS).metrics
    study.preview(UNIFORM)
    study.previewer.release()
    assert study.preview(WEIGHTS).metrics == first


def test_the_baseline_finds_the_finetune_and_counts_it_once(tmp_path: Path) -> None:
    made = fitted(tmp_path)
    assert made.anchors == ({"red": 1, "blue": 0}, {"red": 0, "blue": 1}, UNIFORM)
    study = om.open_search(made, "anchored", seed=0)
    study.optimize(om.Objective(made, progress=False), n_trials=5)
    first = study.trials[0].user_attrs
    assert first["preview_at_anchor"] and not first["truth_reused"] and first["truth_seconds"] > 0
    # Each task alone, uniform weights' second seed, and what was sampled.
    assert [t.user_attrs["preview_at_anchor"] for t in study.trials[1:]] == [True] * 3 + [False]
    # Another worker with the files of the first trains nothing.
    again = fitted(tmp_path)
    assert again.fingerprint == made.fingerprint
    assert set(again.files) == set(made.files)
    run = made.store.path(UNIFORM, made.definition.finetuning)
    assert run in made.files


def test_without_an_anchor_a_study_is_what_it_was(tmp_path: Path) -> None:
    study = fitted(tmp_path, anchor="none")
    assert "anchor" not in study.parts and "preview" not in study.parts
    assert study.store.find(UNIFORM, study.definition.finetuning) is None, "made by its trial"
    assert study.anchors == ({"red": 1, "blue": 0}, {"red": 0, "blue": 1})
    anchored = fitted(tmp_path)
    assert anchored.fingerprint != study.fingerprint
    plain = anchored.previewer.anchored(None)
    assert same(plain.merged(WEIGHTS), study.previewer.merged(WEIGHTS))


def test_a_study_without_an_anchor_refuses_an_anchored_fit(tmp_path: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    om.open_search(fitted(tmp_path, anchor="none"), "old", storage)
    with pytest.raises(DefinitionMismatchError, match="anchor"):
        om.open_search(fitted(tmp_path), "old", storage)


def test_one_task_has_no_anchor(tmp_path: Path) -> None:
    definition = toy_definition([toy_task("red", 1)], preview=PreviewSettings())
    assert definition.settled_preview.anchor == "none"
    study = om.fit(definition, tmp_path, progress=False)
    assert study.anchors == ({"red": 1.0},)


def test_calibration_does_not_count_the_anchor(tmp_path: Path) -> None:
    made = fitted(tmp_path)
    study = om.open_search(made, "anchored", seed=0)
    study.optimize(om.Objective(made, progress=False), n_trials=3)
    found = study_calibration(study, made.names)
    assert found.score is not None
    assert found.score.count == 0


def test_a_finetune_at_uniform_weights_that_diverges_leaves_merges_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train = FinetuneStore.run

    def run(self: FinetuneStore, model: Any, tasks: Any, weights: Any, *a: Any, **k: Any) -> Any:
        if min(weights.values()) > 0:
            raise TrainingDivergedError("the loss is NaN at step 3")
        return train(self, model, tasks, weights, *a, **k)

    monkeypatch.setattr(FinetuneStore, "run", run)
    study = fitted(tmp_path)
    assert "the loss is NaN at step 3" in caplog.text
    assert study.anchors == ({"red": 1, "blue": 0}, {"red": 0, "blue": 1})
    assert study.parts["anchor"] is None
    monkeypatch.undo()
    plain = fitted(tmp_path, anchor="none")
    assert same(study.previewer.merged(WEIGHTS), plain.previewer.merged(WEIGHTS))


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="anchor: uniform or none, got 'best'"):
        PreviewSettings(anchor="best")  # type: ignore[arg-type]
