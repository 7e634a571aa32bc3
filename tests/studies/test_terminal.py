"""Pictures of a terminal, of a small program that draws as the commands do."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from studies.terminal import Screen, main, moments

PROGRAM = """
import sys, time
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
console = Console(stderr=True)
columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
rows = Progress(*columns, console=console)
row = rows.add_task("trials", total=3)
with Live(rows, console=console, transient=True):
    for i in range(3):
        console.print(f"log line {i}")
        rows.update(row, completed=i + 1)
        time.sleep(0.3)
print("The best is [b]7[/b].", sys.stdout.isatty())
"""


def text_of(path: Path) -> str:
    root = ElementTree.fromstring(path.read_text())
    lines = [e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}text")]
    return "".join(lines).replace("\xa0", " ")


def test_the_live_rows_and_the_end_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    main([str(tmp_path), sys.executable, str(tmp_path / "program.py")])
    live, end = tmp_path / "terminal-live.svg", tmp_path / "terminal-end.svg"
    assert capsys.readouterr().out.split() == [str(end), str(live)]
    assert re.search(r"log line 2\strials ━+3/3", text_of(live))
    assert "The best is" not in text_of(live)
    assert "The best is [b]7[/b]. True" in text_of(end) and "3/3" not in text_of(end)
    assert "http" not in re.sub(r"xmlns=\S+|<!--.*?-->", "", live.read_text())


def test_a_command_that_fails_has_no_picture(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        list(moments([sys.executable, "-c", "raise SystemExit(3)"]))


def test_a_row_that_is_drawn_again_is_there_once() -> None:
    screen = Screen()
    screen.feed("above\nrow 1\nrow 2\x1b[1A\r\x1b[2Kfirst\n\x1b[2K\x1b[31msecond\x1b[0m\r")
    assert screen.text == "above\nfirst\n\x1b[31msecond\x1b[0m"
