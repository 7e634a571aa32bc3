"""Commands with placeholders."""

from __future__ import annotations

from optuna_merge.trainers._template import Template


def test_placeholders_are_filled_argument_by_argument() -> None:
    template = Template(
        "sh -c 'echo \"$1\" {x}' - {weights} --math={weight:math} {folder}/out",
        ["math", "my chat"],
        ("weights",),
    )
    assert template.filled({"math": 0.25, "my chat": 0.75}, folder="/a folder") == [
        "sh", "-c", 'echo "$1" {x}', "-", '{"math": 0.25, "my chat": 0.75}', "--math=0.25",
        "/a folder/out",
    ]  # fmt: skip


def test_names_that_begin_alike_and_odd_ones() -> None:
    template = Template(
        ["t", "{weight:math}", "{weight:math hard}"], ["math", "math hard"], ("weight",)
    )
    assert template.filled({"math": 1, "math hard": 0}) == ["t", "1.0", "0.0"]
