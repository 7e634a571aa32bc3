"""Figures and notes in a real optuna-dashboard, in a real browser."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna_dashboard import get_note, save_note
from study_helpers import fitted_toys, study_by_hand, toy_study

import optuna_merge as om
from optuna_merge.reports import Dashboard, update_dashboard
from optuna_merge.reports._dashboard import MAX_BYTES
from optuna_merge.reports._notes import OURS
from optuna_merge.trials import TrialHandle

NAMES = ("red", "green", "blue")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """With a study of three toy tasks."""
    folder = tmp_path_factory.mktemp("dashboard")
    url = f"sqlite:///{folder}/study.db"
    fitted = fitted_toys(folder / "work", NAMES)
    toy_study(fitted, n_trials=8, fraction=1.0, storage=url, name="toys")
    update_dashboard(optuna.load_study(study_name="toys", storage=url))
    return url


@contextmanager
def serving(storage: str) -> Iterator[str]:
    """A dashboard's process; gives its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    process = subprocess.Popen(
        [program, storage, "--host", "127.0.0.1", "--port", str(port), "--server", "wsgiref"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/api/studies", timeout=5)
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, "it didn't start"
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def check_in_browser(url: str, open_page: Callable[..., Any], shots: Path, n_tasks: int) -> None:
    tab = open_page(f"{url}/dashboard/studies/1", offline=False)
    for title in ("Previews and truths: score", "Cost and what was found", "True metrics by task"):
        tab.page.get_by_text(title, exact=True).wait_for(timeout=60_000)
    tab.page.get_by_text("Task weights: score", exact=True).wait_for(timeout=60_000)
    tab.page.screenshot(path=shots / f"study-{n_tasks}.png", full_page=True)
    tab.page.goto(f"{url}/dashboard/studies/1/note")
    tab.page.get_by_text(f"Task weights for {n_tasks} tasks").wait_for(timeout=60_000)
    tab.page.screenshot(path=shots / f"note-{n_tasks}.png")
    tab.page.goto(f"{url}/dashboard/studies/1/trials?numbers=0")
    tab.page.get_by_text("the baseline of uniform weights, always finetuned").wait_for()
    assert tab.errors == []
    assert all(seen.startswith((url, "data:", "blob:")) for seen in tab.requests)


def check_sizes(study: optuna.Study) -> None:
    pieces: dict[str, str] = {}
    attrs = study._storage.get_study_system_attrs(study._study_id)
    for key, value in sorted(attrs.items(), key=lambda item: (len(item[0]), item[0])):
        if key.startswith("dashboard:plot_data:"):
            figure = key.rsplit(":", 1)[0]
            pieces[figure] = pieces.get(figure, "") + value
    assert len(pieces) == 4
    assert all(len(text) < MAX_BYTES and json.loads(text)["data"] for text in pieces.values())


def test_figures_and_notes_are_shown(
    storage: str, open_page: Callable[..., Any], shots: Path
) -> None:
    check_sizes(optuna.load_study(study_name="toys", storage=storage))
    with serving(storage) as url:
        check_in_browser(url, open_page, shots, 3)


@pytest.mark.slow
def test_a_thousand_trials_of_eight_tasks(
    tmp_path: Path, open_page: Callable[..., Any], shots: Path
) -> None:
    storage = f"sqlite:///{tmp_path}/study.db"
    study = study_by_hand(tuple(f"task_{i}" for i in range(8)), 1000, 60, storage=storage)
    update_dashboard(study)
    check_sizes(study)
    with serving(storage) as url:
        check_in_browser(url, open_page, shots, 8)


def test_notes_say_what_why_and_what_came_out(storage: str) -> None:
    study = optuna.load_study(study_name="toys", storage=storage)
    note = get_note(study)
    assert OURS in note
    assert f"trial {study.best_trial.number}" in note or "No weights beat uniform ones" in note
    for trial in study.trials:
        text = get_note(TrialHandle(study, trial.number))
        if trial.state != optuna.trial.TrialState.COMPLETE:
            assert text == ""
            continue
        assert f"truth {trial.value:.4f} (preview {trial.intermediate_values[0]:.4f})" in text
        if "baseline" in trial.user_attrs:
            assert "always finetuned" in text
        else:
            assert "promoted" in text and "its preview was number" in text
    best = study.best_trial
    assert "number 1 of" in get_note(TrialHandle(study, best.number))


def test_peoples_notes_are_left_alone(tmp_path: Path) -> None:
    study = study_by_hand(("red", "blue"), 8, 5)
    update_dashboard(study)
    save_note(study, "mine")
    save_note(TrialHandle(study, 3), "mine as well")
    update_dashboard(study)
    assert get_note(study) == "mine"
    assert get_note(TrialHandle(study, 3)) == "mine as well"
    save_note(study, f"old\n{OURS}")
    update_dashboard(study)
    assert "Task weights for 2 tasks" in get_note(study)


def test_it_is_updated_after_finetunes_and_not_too_often(tmp_path: Path) -> None:
    study = study_by_hand(("red", "blue"), 8, 5)
    previewed, finetuned = study.trials[7], study.trials[0]
    dashboard = Dashboard(study, tmp_path, every=1000)
    dashboard(previewed)
    assert get_note(study) == ""
    dashboard(finetuned)
    assert get_note(study) != ""
    save_note(study, "")
    dashboard(finetuned)
    assert get_note(study) == ""
    dashboard.update()
    assert get_note(study) != ""


def test_nothing_slow_is_imported_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_by_hand(("red", "blue"), 8, 5)
    for module in [name for name in sys.modules if name.partition(".")[0] == "optuna_dashboard"]:
        monkeypatch.delitem(sys.modules, module)
    Dashboard(study, tmp_path)
    assert "optuna_dashboard" not in sys.modules
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(ImportError, match=r"needs optuna_dashboard: pip install .*\[dashboard\]"):
        Dashboard(study, tmp_path)


def test_slow_updates_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_by_hand(("red", "blue"), 8, 5)
    made: list[float] = []
    now = 0.0

    def update(study: optuna.Study) -> None:
        nonlocal now
        now += 10.0
        made.append(now)

    module = "optuna_merge.reports._dashboard"
    monkeypatch.setattr(f"{module}.update_dashboard", update)
    monkeypatch.setattr(f"{module}.time.monotonic", lambda: now)
    dashboard = Dashboard(study, tmp_path, every=30)
    for _ in range(500):
        dashboard(study.trials[0])
        now += 1.0
    assert made == [10.0, 220.0, 430.0]


def test_no_worker_ends_because_of_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    study = study_by_hand(("red", "blue"), 8, 5)
    monkeypatch.setattr("optuna_merge.reports._dashboard.update_dashboard", lambda study: 1 / 0)
    Dashboard(study, tmp_path)(study.trials[0])
    assert "the dashboard's figures are not updated" in caplog.text


def test_a_pareto_study_and_an_empty_one(tmp_path: Path) -> None:
    fitted = fitted_toys(tmp_path, ("red", "blue"), score="pareto")
    study = toy_study(fitted, n_trials=5)
    update_dashboard(study)
    assert "Pareto front of the finetunes**: trials" in get_note(study)
    attrs = study._storage.get_study_system_attrs(study._study_id)
    assert any(key.startswith("dashboard:plot_data:front:") for key in attrs)
    empty = om.open_study("empty", optuna.storages.InMemoryStorage(), "maximize")
    update_dashboard(empty)
    assert get_note(empty) == ""
