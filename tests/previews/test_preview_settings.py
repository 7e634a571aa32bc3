from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import bert_model, save_bert, token_task, toy_definition

from optuna_merge.finetuning import training_device
from optuna_merge.fitting import fit
from optuna_merge.posteriors import IsotropicGaussian
from optuna_merge.previews import Previewer, PreviewSettings


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_previews_in_half_precision_are_close_to_those_in_full(
    precision: str, tmp_path: Path
) -> None:
    tasks = (token_task("one", 1, size=120), token_task("two", 2, classes=3, size=120))
    model = bert_model(save_bert(tmp_path), tasks)
    state = model.state(model.shared_names())
    posteriors = {
        task.name: IsotropicGaussian({n: t + 0.1 * i for n, t in state.items()})
        for i, task in enumerate(tasks)
    }
    heads = {task.name: model.state(model.own_names(task.name)) for task in tasks}
    settings = PreviewSettings(mixed_precision=precision)  # type: ignore[arg-type]
    full = Previewer(model, tasks, posteriors, heads)
    half = Previewer(model, tasks, posteriors, heads, settings=settings)
    weightings = [{"one": 0.25, "two": 0.75}, {"one": 0.8, "two": 0.2}]
    expected = [full(weights) for weights in weightings]
    for weights, other in zip(weightings, expected):
        for name, evaluation in half(weights).evaluations.items():
            loss = other.evaluations[name].loss.value
            # bf16 keeps 8 bits: 2^-8 is 0.4 % of every number on the way.
            assert evaluation.loss.value == pytest.approx(loss, rel=0.01)
            assert evaluation.loss.value != loss
    # Parameters and what comes after are as they were.
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert full(weightings[0]).evaluations == expected[0].evaluations


def test_the_setting_is_part_of_the_definition_only_where_it_is_chosen(tmp_path: Path) -> None:
    bare: dict[str, Any] = {"heads": "merged", "anchor": "none"}
    plain = toy_definition(preview=PreviewSettings(**bare))
    assert "preview" not in plain.describe()
    roomy = PreviewSettings(memory_share=0.9, **bare)
    assert toy_definition(preview=roomy).describe() == plain.describe()
    half = toy_definition(preview=PreviewSettings(mixed_precision="bf16", **bare))
    assert half.describe() == plain.describe() | {"preview": {"mixed_precision": "bf16"}}
    # Runs and posteriors are the same ones.
    before = fit(plain, tmp_path, progress=False)
    after = fit(half, tmp_path, progress=False)
    assert all(run.reused for run in after.runs.values())
    assert after.parts["posteriors"] == before.parts["posteriors"]
    assert after.fingerprint != before.fingerprint
    weights = {"red": 0.5, "blue": 0.5}
    found = {name: f.previewer(weights).evaluations for name, f in (("h", after), ("f", before))}
    assert found["h"] != found["f"]


def test_only_known_precisions_and_fractions() -> None:
    with pytest.raises(ValueError, match="mixed_precision: no, bf16 or fp16, got 'fp8'"):
        PreviewSettings(mixed_precision="fp8")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory_share is a fraction, 0 to 1, got 50"):
        PreviewSettings(memory_share=50)


def test_the_model_is_where_it_would_train_though_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = toy_definition()
    fit(definition, tmp_path, progress=False)
    again = toy_definition()
    sent = []
    move = type(again.model).to
    monkeypatch.setattr(
        type(again.model), "to", lambda self, *to: sent.append(to) or move(self, *to)
    )
    fitted = fit(again, tmp_path, progress=False)
    assert all(run.reused for run in fitted.runs.values())
    assert sent == [(training_device(definition.finetuning),)]
