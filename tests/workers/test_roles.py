"""Workers that only preview and workers that only finetune share one study."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import optuna
import pytest
from helpers import toy_definition
from optuna.trial import FrozenTrial, TrialState, create_trial
from processes import PythonProcess

import optuna_merge as om
from optuna_merge.fitting import FittedStudy
from optuna_merge.pruners import PromotionPruner, read_ledger, should_prune
from optuna_merge.storages import create_storage
from optuna_merge.trials import RUN, fail_and_requeue, lineage, optimize_claimed
from optuna_merge.workers import Role, is_finetune_work, run_trials
from optuna_merge.workers._roles import Watch, announce, next_trial, sign_off
from optuna_merge.workers._running import _others_work

ROOT = Path(__file__).resolve().parents[2]
DEFINITION = """
import sys
sys.path.insert(0, {tests!r})
from helpers import toy_definition as definition
"""
MAIN = "from optuna_merge.cli import main; main()"
W = {"w_red": 0.5, "w_blue": 0.5}
DISTRIBUTIONS = {name: optuna.distributions.FloatDistribution(0, 1) for name in W}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> FittedStudy:
    return om.fit(toy_definition(), tmp_path_factory.mktemp("fit"), progress=False)


def studied(fitted: FittedStudy, folder: Path, **pruner: float) -> optuna.Study:
    study = om.open_study(
        "s",
        create_storage(f"sqlite:///{folder}/study.db"),
        "maximize",
        sampler=om.PreviewSampler(fitted.definition.names, seed=0),
        pruner=PromotionPruner(seed=0, **({"fraction": 0.5, "warmup": 4} | pruner)),
    )
    om.prepare_study(study, fitted, second_seed=False)
    return study


def work(study: optuna.Study, fitted: FittedStudy, folder: Path, role: Role, n: int = 50) -> int:
    objective = om.Objective(fitted, progress=False)
    return run_trials(study, objective, workdir=folder / role, n_trials=n, role=role, patience=0.0)


def kinds(trials: list[FrozenTrial], role: str) -> Counter[TrialState]:
    return Counter(t.state for t in trials if t.user_attrs.get(RUN, "").startswith(role))


def check(trials: list[FrozenTrial], n_previews: int, n_promoted: int) -> None:
    """Every preview was made by a previewing run, every finetune by a finetuning one, once."""
    # Two workers that begin at once may both enqueue the baselines.
    failed = [t for t in trials if t.state == TrialState.FAIL]
    assert all(t.user_attrs["failure"].startswith("duplicate baseline") for t in failed)
    trials = [t for t in trials if t.state != TrialState.FAIL]
    assert kinds(trials, "preview") == {TrialState.PRUNED: n_previews}
    assert kinds(trials, "finetune") == {TrialState.COMPLETE: n_promoted + 3}
    assert len(trials) == n_previews + n_promoted + 3
    ledger = read_ledger(trials)
    assert len(ledger.previews) == n_previews
    assert len(ledger.claims) == n_promoted
    sources = [t.user_attrs["promoted_from"] for t in trials if "promoted_from" in t.user_attrs]
    assert len(set(sources)) == len(sources) == n_promoted
    baselines = [t.user_attrs["baseline"] for t in trials if "baseline" in t.user_attrs]
    assert sorted(baselines) == ["blue", "red", "uniform"]


@pytest.mark.parametrize("kind", [pytest.param("sqlite", marks=pytest.mark.slow), "postgres"])
def test_two_processes(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    if kind == "postgres":
        url = request.getfixturevalue("postgres_database")
    create_storage(url)
    definition = tmp_path / "definition.py"
    definition.write_text(DEFINITION.format(tests=str(ROOT / "tests")))
    command = [
        "-c", MAIN, "optimize", str(definition),
        "--storage", url, "--workdir", str(tmp_path / "work"), "--fraction", "0.5", "--seed", "0",
        "--max-promotions", "6",  # then the finetuner need not wait whether more will come
        "--keep-going", "--no-second-seed",
    ]  # fmt: skip
    workers = [
        PythonProcess(*command, "--role", role, *more)
        for role, more in (("finetune", []), ("preview", ["--n-trials", "12"]))
    ]
    outputs = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    study = optuna.load_study(study_name="optuna_merge", storage=create_storage(url))
    trials = study.get_trials()
    again = [t for t in trials if "repeat" in t.user_attrs and t.state == TrialState.COMPLETE]
    assert len(again) == 2, "the last two of the six, queued by the finetuner itself"
    assert {t.user_attrs["promotion"] for t in again} == {"begun"}
    check([t for t in trials if "repeat" not in t.user_attrs], 12, 4)
    assert not list((tmp_path / "work").rglob("runs/*/*.json")), "both runs are over"


def test_one_after_the_other(fitted: FittedStudy, tmp_path: Path) -> None:
    study = studied(fitted, tmp_path)
    assert work(study, fitted, tmp_path, "preview", 9) == 9
    trials = study.get_trials()
    assert Counter(t.state for t in trials) == {TrialState.PRUNED: 9, TrialState.WAITING: 4 + 3}
    assert not any(key.startswith("truth") for t in trials for key in t.user_attrs)
    assert work(study, fitted, tmp_path, "finetune") == 7
    check(study.get_trials(), 9, 4)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_killed_previewer_s_promotion_is_not_lost(
    after: bool, fitted: FittedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies with its preview, before a copy of it was queued or after."""
    study = studied(fitted, tmp_path, fraction=1.0, warmup=0)

    def killed(trial: optuna.Trial) -> bool:
        if after:
            assert should_prune(trial)
        fail_and_requeue(study, trial.number)
        raise KeyboardInterrupt

    monkeypatch.setattr("optuna_merge.objective.should_prune", killed)
    with pytest.raises(ValueError, match="Cannot tell a FAIL trial"):
        optimize_claimed(study, om.Objective(fitted, progress=False), None)
    monkeypatch.undo()
    assert study.trials[3].state == TrialState.FAIL
    work(study, fitted, tmp_path, "preview", 2)
    work(study, fitted, tmp_path, "finetune")
    trials = study.get_trials()
    assert not [t for t in trials if not t.state.is_finished()]
    truths = [t for t in trials if "truth_red" in t.user_attrs and "baseline" not in t.user_attrs]
    assert sorted(map(lineage, truths)) == sorted(read_ledger(trials).claims)
    assert len(truths) == len(read_ledger(trials).previews) == 2


def test_only_a_pruner_that_ends_previews_lets_workers_preview_only(
    fitted: FittedStudy, tmp_path: Path
) -> None:
    study = studied(fitted, tmp_path)
    objective = om.Objective(fitted, progress=False)
    with pytest.raises(ValueError, match="expected one of: any, preview, finetune"):
        run_trials(study, objective, workdir=tmp_path, n_trials=1, role="both")  # type: ignore[arg-type]
    study.pruner = optuna.pruners.MedianPruner()
    with pytest.raises(ValueError, match="role is 'preview', but the study's pruner is MedianPru"):
        run_trials(study, objective, workdir=tmp_path, n_trials=1, role="preview")
    assert not list(tmp_path.rglob("runs/*/*.json"))
    assert [t.state for t in study.trials] == [TrialState.WAITING] * 3
    assert run_trials(study, objective, workdir=tmp_path, n_trials=1) == 1


@pytest.mark.parametrize(
    ("user_attrs", "values", "expected"),
    [
        ({}, {}, False),
        ({}, {0: 0.5}, False),
        ({"preview_red": 0.5}, {}, False),
        ({"promoted_from": 0}, {0: 0.5}, True),
        ({"baseline": "uniform"}, {}, True),
        ({}, {0: 0.5, 3: 0.6}, True),
    ],
)
def test_whose_work_it_is(
    user_attrs: dict[str, object], values: dict[int, float], expected: bool
) -> None:
    trial = create_trial(
        state=TrialState.WAITING, user_attrs=user_attrs, intermediate_values=values
    )
    assert is_finetune_work(trial) == expected
    study = optuna.create_study()
    study.add_trial(trial)
    assert (next_trial(study, "finetune") is not None) == expected
    assert study.trials[0].state == (TrialState.RUNNING if expected else TrialState.WAITING)
    if not expected:
        optimize = next_trial(study, "preview")
        assert optimize is not None
        optimize(lambda t: float(t.number))
        assert study.best_value == 0.0, "the waiting one, no new one"


def copy_of(number: int, state: TrialState, **more: object) -> FrozenTrial:
    return create_trial(
        state=state,
        value=1.0 if state == TrialState.COMPLETE else None,
        params=W,
        distributions=DISTRIBUTIONS,
        intermediate_values={0: 0.5},
        user_attrs={"promoted_from": number, **more},
    )


def previewed() -> FrozenTrial:
    return create_trial(
        state=TrialState.PRUNED,
        params=W,
        distributions=DISTRIBUTIONS,
        intermediate_values={0: 0.5},
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a watch sees, to be set."""
    now = [0.0]
    monkeypatch.setattr("optuna_merge.workers._roles.time.monotonic", lambda: now[0])
    return now


def test_a_finetuner_waits_until_the_previewers_have_ended(
    clock: list[float],
) -> None:
    study = optuna.create_study(pruner=PromotionPruner())
    watch = Watch(study, patience=100.0)
    clock[0] = 50.0
    assert not watch.is_over(), "nobody has begun"
    announce(study, "one")
    announce(study, "two")
    sign_off(study, "one")
    assert not watch.is_over()
    sign_off(study, "two")
    assert watch.is_over()
    study.add_trial(previewed())
    assert not watch.is_over(), "something has happened"
    clock[0] = 59.0
    assert not watch.is_over(), "another one may be about to begin"
    clock[0] = 60.0
    assert watch.is_over()
    announce(study, "three")
    clock[0] = 149.0
    assert not watch.is_over()
    clock[0] = 150.0
    assert watch.is_over(), "it was killed, and nobody has started it again"
    study.add_trial(copy_of(0, TrialState.WAITING))
    clock[0] = 1e6
    assert not watch.is_over(), "there is something to finetune"


def test_a_finetuner_does_not_wait_for_a_dead_preview_for_ever(
    clock: list[float],
) -> None:
    study = optuna.create_study(pruner=PromotionPruner())
    study.ask()  # its worker is killed: memory has no heartbeat
    announce(study, "one")
    sign_off(study, "one")
    watch = Watch(study, patience=100.0)
    assert not watch.is_over()
    clock[0] = 99.0
    assert not watch.is_over(), "its preview may be promoted"
    clock[0] = 100.0
    assert watch.is_over()


@pytest.mark.parametrize(
    ("run", "waits"), [(None, False), ("preview8-1", False), ("8-1", True), ("finetune8-1", True)]
)
def test_promoted_trials_are_left_to_runs_that_finetune(
    run: str | None, waits: bool, tmp_path: Path
) -> None:
    study = optuna.create_study()
    trial = study.ask()
    if run is not None:
        trial.set_user_attr(RUN, run)
    assert _others_work(study, tmp_path, "20-1") == waits


def test_a_finetuner_goes_when_the_budget_is_spent_or_nothing_happens() -> None:
    study = optuna.create_study(pruner=PromotionPruner(max_promotions=1))
    announce(study, "one")
    for _ in range(2):
        study.add_trial(previewed())
    watch = Watch(study, patience=1e6)
    assert not watch.is_over()
    study.add_trial(copy_of(0, TrialState.RUNNING))
    assert not watch.is_over()
    study.tell(2, 1.0)
    assert watch.is_over()
    study.pruner = PromotionPruner(max_promotions=2)
    assert not watch.is_over()
    assert Watch(study, patience=0.0).is_over()


@pytest.mark.parametrize(
    ("limits", "spent"),
    [
        ({}, False),
        ({"fraction": 0.0}, True),
        ({"max_promotions": 1}, True),
        ({"max_promotions": 2}, False),
        ({"budget": 1.4}, True),
        ({"budget": 1.6}, False),
    ],
)
def test_when_a_budget_is_spent(limits: dict[str, float], spent: bool) -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(previewed())
    study.add_trial(copy_of(0, TrialState.COMPLETE, truth_seconds=2.0))
    assert PromotionPruner(**limits).is_spent(study) == spent  # type: ignore[arg-type]
