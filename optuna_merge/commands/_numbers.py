"""Numbers by task, as flags have them."""

from __future__ import annotations


def numbers_by_task(text: str, flag: str) -> dict[str, float]:
    """What `TASK=NUMBER,TASK=NUMBER` says.

    Raises:
        ValueError: it is not of this form, or names a task twice.
    """
    numbers: dict[str, float] = {}
    for item in text.split(","):
        name, _, number = item.partition("=")
        name = name.strip()
        if name in numbers:
            raise ValueError(f"{flag} has the task {name!r} twice; give each one number")
        try:
            numbers[name] = float(number)
        except ValueError:
            word = "WEIGHT" if flag == "--weights" else "NUMBER"
            raise ValueError(
                f"can't read {item!r} in {flag}; expected TASK={word},TASK={word}"
            ) from None
    return numbers
