"""The exported posterior, evaluated in a browser, is the posterior in Python."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np
import pytest

from optuna_merge.surrogate import TruthModel, export_model, startup_design
from optuna_merge.trials import Series

TOLERANCE = 1e-6  # of a standard deviation; about 1e-10 is what double precision leaves

PREDICT = """([data, points]) => {
    const model = Surrogate.load(data);
    return points.map(weights => {
        const { mean, std } = model.predict(weights);
        return [mean, std, model.mean(weights)];
    });
}"""


def metric(weights: np.ndarray, shift: float) -> np.ndarray:
    return 0.6 + 0.3 * np.sqrt(weights[:, 0] + 0.02) + 0.05 * np.sin((5 + shift) * weights[:, -1])


def series(
    n_tasks: int, n_previews: int, n_truths: int, *, sign: float = 1.0, own: int | None = None
) -> Series:
    rng = np.random.default_rng(0)
    weights = startup_design(n_tasks, max(n_previews, n_truths), seed=0)
    noise = np.full(n_previews, 1e-5)
    noise[::5] = np.nan  # unknown
    seen = metric(weights[:n_previews], 0.0) + 0.003 * rng.normal(size=n_previews)
    return Series(
        preview_weights=weights[:n_previews],
        previews=sign * seen,
        truth_weights=weights[:n_truths],
        truths=sign * metric(weights[:n_truths], 2.0),
        preview_noise=noise,
        sign=sign,
        own=own,
    )


@pytest.fixture(scope="module")
def tab(chromium: Any) -> Any:
    page = chromium.new_page()
    script = resources.files("optuna_merge.reports") / "page" / "surrogate.js"
    page.add_script_tag(content=script.read_text("utf-8") + "\nwindow.Surrogate = Surrogate;")
    yield page
    page.close()


@pytest.mark.parametrize(
    ("described", "of"),
    [
        ("three tasks", series(3, 60, 15)),
        ("to be minimised", series(3, 40, 12, sign=-1.0)),
        ("more previews and truths than the model holds", series(4, 320, 110)),
        ("eight tasks", series(8, 150, 40)),
        ("a task's metric", series(3, 60, 15, own=0)),
        ("a task's metric, to be minimised", series(4, 40, 12, sign=-1.0, own=3)),
        ("a task's metric, truths only", series(3, 0, 12, own=1)),
        ("one task", series(1, 4, 2)),
        ("previews only", series(3, 20, 0)),
        ("truths only", series(3, 0, 12)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_browser_predicts_what_python_does(tab: Any, described: str, of: Series) -> None:
    model = TruthModel.fit(of)
    data = json.loads(json.dumps(export_model(model), allow_nan=False))
    n_tasks = data["tasks"]
    points = np.concatenate([startup_design(n_tasks, 60, 1), model.anchors[:20]])
    found = np.array(tab.evaluate(PREDICT, [data, points.tolist()]))
    mean, std = model.predict(points)
    np.testing.assert_allclose(found[:, 0] - mean, 0, atol=TOLERANCE * std.min())
    np.testing.assert_allclose(found[:, 2] - mean, 0, atol=TOLERANCE * std.min())
    np.testing.assert_allclose(found[:, 1] / std, 1, rtol=TOLERANCE)
