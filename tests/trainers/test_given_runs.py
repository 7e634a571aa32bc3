"""Checkpoints that are there stand for task runs: they cost nothing, or it is told why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_from_trainer import TRAIN, VALIDATION, ignore, lora, texts
from trainer_helpers import STEPS, MakeTrainer, bert, pad
from transformers import Trainer

import optuna_merge as om
from optuna_merge.definition import GivenRun
from optuna_merge.exceptions import CorruptFileError
from optuna_merge.trainers import FittedProgram
from optuna_merge.trainers._given_curvature import from_file, from_optimizer

AVERAGING = om.PosteriorSettings(family="isotropic")
DIAGONAL = om.PosteriorSettings(examples=8, damping=1e-3)


class Kept(MakeTrainer):
    """Trainers that leave their checkpoints."""

    def trained(self, folder: Path, task: str, **changes: Any) -> Path:
        self.changes |= changes
        torch.manual_seed(0)
        trainer = self(str(folder))
        trainer.train_dataset = TRAIN.get(task)
        trainer.train()
        return folder / f"checkpoint-{STEPS}"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the two tasks, as a Trainer has left them."""
    folder = tmp_path_factory.mktemp("theirs")
    return {task: Kept(VALIDATION).trained(folder / task, task) for task in TRAIN}


def fitted(folder: Path, runs: Any, make: Any = None, **options: Any) -> FittedProgram:
    make = make or MakeTrainer(VALIDATION)
    settings = {"posterior": AVERAGING, "progress": False, "anchor": "none"} | options
    return om.from_trainer(make, TRAIN, workdir=folder, runs=runs, **settings)


def test_the_curvature_of_another_loss_is_another_file(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    fitted(tmp_path, checkpoints, posterior=DIAGONAL)
    curvatures = set(tmp_path.glob("posteriors/curvature-*.safetensors"))
    smoothed = MakeTrainer(VALIDATION, label_smoothing_factor=0.1)
    fitted(tmp_path, checkpoints, smoothed, posterior=DIAGONAL)
    both = set(tmp_path.glob("posteriors/curvature-*.safetensors"))
    assert (len(curvatures), len(both)) == (2, 4)


class Untrained(Trainer):  # type: ignore[misc]
    """A Trainer that must not train."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained")


def test_given_runs_are_evaluated_and_cost_nothing(
    checkpoints: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = MakeTrainer(VALIDATION, kind=Untrained)
    with caplog.at_level("INFO", "optuna_merge"):
        fit = fitted(tmp_path, checkpoints, make)
    assert f"task math: its run is given, {checkpoints['math']}, and costs nothing" in caplog.text
    assert fit.costs == {"task_run_steps": 0, "task_run_seconds": 0, "posterior_seconds": 0}
    assert sorted(fit.parts["runs"]) == ["math", "math_hard"]
    trainer = MakeTrainer(VALIDATION)("unused")
    for task, weights in zip(fit.names, fit.anchors):
        trainer.model.load_state_dict(load_file(checkpoints[task] / "model.safetensors"))
        expected = trainer.evaluate(VALIDATION[task])["eval_loss"]
        assert fit.alone[task] == pytest.approx(expected, rel=1e-5)
        rungs: dict[int, Any] = {}
        truth = fit.finetune(weights, rungs.__setitem__)
        assert truth.reused and list(rungs) == [STEPS]
        assert fit.preview(weights).values == pytest.approx(truth.values, rel=1e-5)
    again = fitted(tmp_path, checkpoints, make)
    assert again.fingerprint == fit.fingerprint
    assert all(run.given for run in again.runs.values())


def test_a_study_with_one_given_run_says_what_it_spent(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    fit = fitted(tmp_path, {"math": checkpoints["math"]}, anchor="uniform")
    assert fit.costs["task_run_steps"] == STEPS
    study = om.open_search(fit, "given", seed=0, second_seed=False)
    study.optimize(om.Objective(fit, progress=False), n_trials=4)
    report = om.make_report(study, fit)
    assert report["cost"]["task_run_steps"] == STEPS
    assert report["definition"]["runs"].keys() == {"math"}
    assert "Given runs, which cost nothing: math\n" in om.format_report(report)
    trained = fit.finetune({"math": 1.0, "math_hard": 0.0}, ignore, repeat=1)
    assert not trained.reused, "a second seed is trained"
    other = fitted(tmp_path, {}, anchor="uniform")
    assert other.fingerprint != fit.fingerprint
    assert other.alone["math"] != fit.alone["math"]


def test_curvature_from_the_loss_the_optimizer_and_a_file(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    def damped(curvature: Any, batch_size: int | None = None) -> FittedProgram:
        runs = {t: GivenRun(path, curvature, batch_size) for t, path in checkpoints.items()}
        return fitted(tmp_path / "work", runs, posterior=DIAGONAL)

    weights = {"math": 0.3, "math_hard": 0.7}
    loss, moments = damped("loss"), damped("optimizer")
    assert loss.preview(weights).values != pytest.approx(moments.preview(weights).values, rel=1e-6)
    assert damped("optimizer", 4).fingerprint == moments.fingerprint, "the Trainer's own batch"
    assert damped("optimizer", 8).fingerprint != moments.fingerprint
    kept = max((tmp_path / "work" / "posteriors").glob("curvature-math-*.safetensors"))
    squares = {name: torch.ones_like(tensor) for name, tensor in load_file(kept).items()}
    save_file(squares, tmp_path / "ones.safetensors")
    averages = fitted(tmp_path / "work", checkpoints).preview(weights).values
    assert damped(tmp_path / "ones.safetensors").preview(weights).values == pytest.approx(
        averages, rel=1e-4
    )


def test_adams_moments_are_matched_to_names(checkpoints: dict[str, Path]) -> None:
    """As the model's own optimizer, whose parameters have names, has them."""
    trainer = MakeTrainer(VALIDATION)("unused")
    parameters = dict(trainer.model.named_parameters())
    found = from_optimizer("math", checkpoints["math"], trainer, parameters, 4.0)
    assert trainer.optimizer is None
    state = torch.load(checkpoints["math"] / "optimizer.pt", weights_only=True)
    own = trainer.create_optimizer()
    own.load_state_dict(state)
    for name, parameter in parameters.items():
        expected = own.state[parameter]["exp_avg_sq"] * 4 / (1 - 0.999**STEPS)
        torch.testing.assert_close(found[name], expected)


def changed(path: Path, folder: Path, name: str, change: Any) -> Path:
    """A copy of a checkpoint with one file changed by a function of its content."""
    copy = folder / "copy"
    shutil.copytree(path, copy)
    file = copy / name
    if name.endswith(".json"):
        file.write_text(json.dumps(change(json.loads(file.read_text()))))
    elif name.endswith(".pt"):
        torch.save(change(torch.load(file, weights_only=True)), file)
    else:
        save_file(change(load_file(file)), file, {"format": "pt"})
    return copy


def without(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state in which one parameter less is decayed."""
    first, second = state["param_groups"]
    groups = [first | {"params": first["params"][:-1]}, second]
    groups[1] = second | {"params": [first["params"][-1], *second["params"]]}
    return state | {"param_groups": groups}


def swapped(state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state whose moments are those of other parameters."""
    of = state["state"]
    return state | {"state": {i: of[len(of) - 1 - i] for i in of}}


def momentum(state: dict[str, Any]) -> dict[str, Any]:
    """The state of SGD."""
    groups = [{k: v for k, v in g.items() if k != "betas"} for g in state["param_groups"]]
    return state | {"param_groups": groups}


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (without, ValueError, "it is not known which moment is whose; give curvature='loss'"),
        (swapped, ValueError, "optimizer.pt: .* has shape .*, expected"),
        (momentum, ValueError, "keeps no second moments; expected Adam or AdamW; give curvature"),
        (lambda state: {"a": 1}, CorruptFileError, "is no optimizer's state"),
    ],
)
def test_moments_without_a_sure_place_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, change: Any, error: Any, told: str
) -> None:
    copy = changed(checkpoints["math"], tmp_path, "optimizer.pt", change)
    trainer = MakeTrainer(VALIDATION)("unused")
    parameters = dict(trainer.model.named_parameters())
    with pytest.raises(error, match=told):
        from_optimizer("math", copy, trainer, parameters, 1.0)


def test_a_state_that_runs_code_is_not_read(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "optimizer.pt").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    trainer = MakeTrainer(VALIDATION)("unused")
    with pytest.raises(CorruptFileError, match="holds more than tensors, which is not executed"):
        from_optimizer("math", tmp_path, trainer, {}, 1.0)
    with pytest.raises(FileNotFoundError, match=r"has no optimizer.pt; expected a checkpoint-"):
        from_optimizer("math", tmp_path / "no", trainer, {}, 1.0)


def test_curvature_in_a_file_has_all_parameters(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for tensors, told in (
        ({"b": torch.ones(2)}, "has no 'a'; there is 'b'"),
        ({"a": torch.ones(3)}, r"'a' has shape \(3,\), expected \(2,\)"),
        ({"a": -torch.ones(2)}, "'a' is negative; expected squares"),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=told):
            from_file("math", path, {"a": torch.ones(2)})
    path.write_bytes(b"nothing")
    with pytest.raises(CorruptFileError, match="can't be read as safetensors"):
        from_file("math", path, {"a": torch.ones(2)})


def deeper() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=50, intermediate_size=16, max_position_embeddings=8, **sizes)
    return BertForSequenceClassification(config)


def head_only() -> Any:
    """Trains its head; another body than that of `bert` with seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    return model


WORD = "bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("model", "change", "told"),
    [
        (deeper, None, r"has no 'bert.encoder.layer.1.* is it a checkpoint of another base\?"),
        (
            head_only,
            None,
            "is not that of the model that is trained, which keeps it frozen; is it a ch",
        ),
        (
            bert,
            lambda of: of | {"extra": torch.ones(2)},
            "the model that is trained has no 'extra'",
        ),
        (bert, lambda of: of | {WORD: of[WORD][:9]}, r"has shape \(9, 16\), expected \(50, 16\)"),
    ],
)
def test_checkpoints_of_another_base_are_refused(
    checkpoints: dict[str, Path], tmp_path: Path, model: Any, change: Any, told: str
) -> None:
    path = checkpoints["math"]
    if change is not None:
        path = changed(path, tmp_path, "model.safetensors", change)
    make = MakeTrainer(VALIDATION, model)
    with pytest.raises(ValueError, match=told) as error:
        fitted(tmp_path / "work", {"math": path}, make)
    assert "runs: task 'math': " in str(error.value)
    assert not (tmp_path / "work" / "program-runs").exists(), "before anything is trained"


def test_another_base_of_equal_shapes_is_refused_unless_it_is_wanted(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    torch.manual_seed(7)
    bert().save_pretrained(tmp_path / "other")
    runs = {"math": tmp_path / "other", "math_hard": checkpoints["math_hard"]}
    with pytest.raises(
        ValueError, match=r"nothing in common .* is -?0\.0., of a finetune .* any_base"
    ):
        fitted(tmp_path / "work", runs)
    assert not (tmp_path / "work" / "program-runs").exists()
    wanted = GivenRun(tmp_path / "other", any_base=True)
    assert fitted(tmp_path / "work", runs | {"math": wanted}).runs["math"].given


def test_what_is_no_run_of_a_task_is_told(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    path = checkpoints["math"]
    with pytest.raises(ValueError, match="no task is called 'maht'; did you mean 'math'"):
        fitted(tmp_path, {"maht": path})
    with pytest.raises(ValueError, match="no task is called 'x'; there are math, math_hard"):
        fitted(tmp_path, {"x": path})
    with pytest.raises(FileNotFoundError, match="task 'math': there is no checkpoint 'nowhere'"):
        fitted(tmp_path, {"math": "nowhere"})
    with pytest.raises(FileNotFoundError, match="task 'math': there is no curvature 'nothing'"):
        fitted(tmp_path, {"math": GivenRun(path, "nothing")})
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, FileNotFoundError), match=r"has no model.safetensors"):
        fitted(tmp_path, {"math": tmp_path / "empty"})
    with pytest.raises(ValueError, match="posteriors of the family 'isotropic' need none"):
        fitted(tmp_path, {"math": GivenRun(path, "optimizer")})
    with pytest.raises(ValueError, match="batch_size is 4; expected at least 1, and only with"):
        GivenRun(path, "loss", 4)
    with pytest.raises(ValueError, match="anchor: uniform or none, got 'some'"):
        fitted(tmp_path, {}, anchor="some")


TALK = {"math": texts(2, 1), "math_hard": texts(3, 2)}


def adapters(folder: Path) -> tuple[dict[str, Path], Kept]:
    make = Kept(TALK, lambda: lora(freeze=False), more={"data_collator": pad}, learning_rate=0.1)
    runs = {}
    for task in TALK:
        torch.manual_seed(0)
        trainer = make(str(folder / task))
        trainer.train_dataset = TALK[task]
        trainer.train()
        runs[task] = folder / task / f"checkpoint-{STEPS}"
    return runs, make


def test_adapters_are_given_runs(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    runs, make = adapters(tmp_path)

    def fit(given: Mapping[str, Path], maker: Any = make) -> FittedProgram:
        return om.from_trainer(
            maker, TALK, workdir=tmp_path / "work", runs=given, anchor="none", progress=False
        )

    found = fit(runs)
    assert found.costs["task_run_steps"] == 0
    torch.manual_seed(0)  # the base that is made in every run
    trainer = make("unused")
    peft.set_peft_model_state_dict(
        trainer.model, load_file(runs["math"] / "adapter_model.safetensors")
    )
    expected = trainer.evaluate(TALK["math"])["eval_loss"]
    assert found.alone["math"] == pytest.approx(expected, rel=1e-5)
    found.preview({"math": 0.5, "math_hard": 0.5})
    for key, value, told in (
        ("lora_alpha", 64, "lora_alpha is 64, but 8 in the adapter that is tr"),
        (
            "base_model_name_or_path",
            "org/other",
            "its base is 'org/other', but 'org/base' is that of",
        ),
    ):
        change = partial(dict, **{key: value})
        copy = changed(runs["math"], tmp_path / key, "adapter_config.json", change)
        maker: Any = make
        if key.startswith("base"):
            maker = lambda folder: based(make(folder))  # noqa: E731
        with pytest.raises(ValueError, match=told):
            fit({"math": copy}, maker)
    file = "adapter_model.safetensors"
    cut = changed(runs["math"], tmp_path / "cut", file, lambda of: dict(list(of.items())[1:]))
    with pytest.raises(ValueError, match=r"was it made by another LoraConfig, or is it a check"):
        fit({"math": cut})
    whole = tmp_path / "whole"
    make("unused").model.get_base_model().save_pretrained(whole)
    with pytest.raises(ValueError, match=r"is no adapter's folder .* but an adapter is tr"):
        fit({"math": whole})


def test_bases_are_compared_by_hash_or_name(tmp_path: Path) -> None:
    from optuna_merge.fitting._given import _same_base

    for name, value in (("one", 1.0), ("copy", 1.0), ("other", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.full((2,), value)}, tmp_path / name / "model.safetensors")
    assert _same_base(str(tmp_path / "one"), str(tmp_path / "copy"))
    assert not _same_base(str(tmp_path / "one"), str(tmp_path / "other"))
    assert _same_base("meta/Llama-8B", str(tmp_path / "nowhere" / "llama-8b"))
    assert not _same_base("meta/Llama-8B", "meta/Llama-8B-Instruct")


def based(trainer: Any) -> Any:
    """A Trainer whose adapter knows its base's name."""
    config = trainer.model.peft_config[trainer.model.active_adapter]
    config.base_model_name_or_path = "org/base"
    return trainer


def test_an_adapter_is_no_run_of_a_whole_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    runs, _ = adapters(tmp_path)
    with pytest.raises(ValueError, match="is an adapter, but the model that is trained has none"):
        fitted(tmp_path / "work", {"math": runs["math"]})
