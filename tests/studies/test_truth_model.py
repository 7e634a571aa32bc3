from __future__ import annotations

import numpy as np
import pytest

from studies import truth_model
from studies.truth_model import FORMS, RULES, Suite, interpolated, modelled, shifted, views


@pytest.fixture(scope="module")
def suite() -> Suite:
    return Suite.read("text")


def test_a_suite_has_its_baselines_and_no_gaps(suite: Suite) -> None:
    np.testing.assert_allclose(suite.weights[suite.baselines[0]], 1 / 3)
    np.testing.assert_array_equal(suite.weights[suite.baselines[1:]], np.eye(3))
    assert np.isfinite(suite.truths).all()
    assert suite.truths.shape == (2, len(suite.weights), 3)
    assert suite.previews.shape == (2, len(suite.weights), 3)
    assert suite.anchors == (0, 1)


def test_what_is_seen(suite: Suite) -> None:
    seen = [view for _, view in views(suite, 6, 20, 1)]
    assert len(seen) == 2  # seeds of the truths
    for seed, view in zip(suite.anchors, seen, strict=True):
        assert len(view.at) == 6
        assert view.at[:4].tolist() == suite.baselines
        assert (suite.weights[view.at[4:]] > 0).all()
        assert len(view.previewed) == len(set(view.previewed.tolist())) == 20
        np.testing.assert_array_equal(view.truths, suite.truths[seed][view.at])
    assert RULES["shifted"](seen[0]) is None  # not everywhere


def test_rules_meet_the_truths_they_have_seen(suite: Suite) -> None:
    _, seen = next(views(suite, 0, 0, 1))
    np.testing.assert_allclose(interpolated(seen)[seen.at], seen.truths)
    np.testing.assert_allclose(shifted(seen)[seen.at[0]], seen.truths[0])


def test_regrets_are_of_the_seeds_that_were_not_seen(suite: Suite) -> None:
    best = suite.truths[1]
    found = truth_model.regrets(suite, 0, (best, np.zeros_like(best)))
    inside = suite.truths.mean(axis=0)[suite.inside]
    for index, score in enumerate(s for s in suite.scores if s.name.startswith("target")):
        place = np.where(suite.inside, best[:, index], -1).argmax()
        noise = np.sqrt(suite.truths[:, suite.inside, index].var(axis=0, ddof=1).mean())
        loss = inside[:, index].max() - suite.truths[1, place, index]
        assert found[score.name, "interior"] == pytest.approx(loss / noise)


def test_the_default_of_the_model_is_the_last_form(suite: Suite) -> None:
    _, seen = next(views(suite, 0, 20, 1))
    for found, wanted in zip(list(FORMS.values())[-1](seen), modelled(None)(seen)):  # type: ignore[arg-type]
        np.testing.assert_allclose(found, wanted)
