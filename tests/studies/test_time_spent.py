"""The table of where a study's seconds go."""

from __future__ import annotations

import pytest

from studies.time_spent import REST, STAGES, Stopwatch, owner_of, table


@pytest.mark.parametrize("place", STAGES)
def test_every_stage_s_function_is_there(place: str) -> None:
    owner, name = owner_of(place)
    assert callable(getattr(owner, name))


def test_a_stage_within_another_is_taken_out_of_it() -> None:
    now = 0.0
    stopwatch = Stopwatch(lambda: now)

    def heads() -> str:
        nonlocal now
        now += 2.0
        return "solved"

    def preview() -> str:
        nonlocal now
        now += 1.0
        return watched()

    watched = stopwatch.watch(heads, "heads")
    now = 5.0
    assert stopwatch.watch(preview, "previews")() == "solved"
    now += 1.0
    with pytest.raises(ValueError), stopwatch.stage("previews"):
        raise ValueError
    assert stopwatch.seconds == {REST: 6.0, "previews": 1.0, "heads": 2.0}
    assert table(stopwatch.seconds).splitlines()[2:] == [
        "| all else | 6.0 | 67% |",
        "| previews | 1.0 | 11% |",
        "| heads | 2.0 | 22% |",
    ]
