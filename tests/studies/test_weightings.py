"""The weights that are drawn for a table, and what stands among them."""

from __future__ import annotations

import pytest

from studies.weightings import LEAST, parse_drawn, scattered


def test_weights_of_simple_rules_stand_among_them() -> None:
    points = scattered([150, 1500, 1500, 1500], inside=5, faces=0)
    for wanted in (
        (1, 0, 0, 0),
        (0, 0, 0, 1),
        (0.25, 0.25, 0.25, 0.25),
        (0.032, 0.323, 0.323, 0.323),
        (0.4, 0.2, 0.2, 0.2),
        (1 / 7, 1 / 7, 1 / 7, 4 / 7),
    ):
        assert any(p == pytest.approx(wanted, abs=1e-3) for p in points), wanted


def test_so_many_are_drawn_inside_and_on_faces() -> None:
    fixed = scattered([10, 10, 10], inside=0, faces=0)
    assert len(fixed) == 3 + 1 + 3 * 3  # proportional weights are uniform ones here
    inside = scattered([10, 10, 10], inside=7, faces=0)
    assert inside[: len(fixed)] == fixed
    assert len(inside) == len(fixed) + 7
    assert all(min(p) >= LEAST - 1e-3 for p in inside[len(fixed) :])
    faces = scattered([10, 10, 10], inside=7, faces=6)[len(inside) :]
    assert len(faces) == 6
    assert all(min(p) == 0 and max(p) < 1 for p in faces)


def test_the_draw_is_the_seeds() -> None:
    one, again, other = (scattered([1, 2], inside=4, faces=0, seed=s) for s in (0, 0, 1))
    assert one == again
    assert one != other
    assert all(sum(p) == 1.0 for p in one)


@pytest.mark.parametrize("text", ["", "3", "3,x", "1,2,3", "-1,2"])
def test_numbers_of_weights_are_two(text: str) -> None:
    assert parse_drawn("28, 12") == (28, 12)
    with pytest.raises(ValueError, match="--drawn is two numbers of weights, as in 28,12; got"):
        parse_drawn(text)
