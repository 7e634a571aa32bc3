"""Pictures of a terminal: what a command shows while it runs, and what it leaves behind.

    python studies/terminal.py FOLDER python studies/desks/optimize.py --seed 0

runs the command in a terminal of its own and writes FOLDER/terminal-live.svg, the last moment at
which rows of progress were seen (two of them, if ever), and FOLDER/terminal-end.svg.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import io
import os
import pty
import re
import select
import shlex
import struct
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.text import Text

from optuna_merge._base.files import atomic_path

_WIDTH, _HEIGHT = 100, 40
_IDLE = 0.05
"""Seconds without output after which a drawing is whole."""
_PROGRESS = re.compile(r"[━╸] *\d+/\d+")
_CODES = re.compile(r"\x1b\[([\d;?]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|\x1b")
_FONTS = re.compile(r"@font-face \{.*?\}\n", re.S)


class Screen:
    """The lines of a terminal, with their colours; knows what `rich` draws with."""

    def __init__(self) -> None:
        self._lines = [""]
        self._row = 0

    def feed(self, text: str) -> None:
        """Draw what a program writes."""
        for found in _CODES.finditer(text):
            arguments, code, control, plain = found.groups()
            if plain is not None:
                self._lines[self._row] += plain
            elif control == "\n":
                self._row += 1
                self._lines += [""] * (self._row + 1 - len(self._lines))
            elif code == "A":
                self._row = max(self._row - int(arguments or 1), 0)
            elif code == "K":
                self._lines[self._row] = ""
            elif code == "m":
                self._lines[self._row] += found[0]

    @property
    def text(self) -> str:
        """All lines, as high as a terminal."""
        lines = "\n".join(self._lines).rstrip().split("\n")
        return "\n".join(lines[-_HEIGHT:])


def moments(command: Sequence[str]) -> Iterator[str]:
    """What a terminal shows whenever the command writes nothing more for a moment.

    Raises:
        RuntimeError: the command fails.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        for name in ("NO_COLOR", "COLUMNS", "LINES", "CI"):
            os.environ.pop(name, None)
        os.execvp(command[0], list(command))
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", _HEIGHT, _WIDTH, 0, 0))
    screen, decoder = Screen(), codecs.getincrementaldecoder("utf-8")(errors="replace")
    screen.feed(f"$ {shlex.join(command)}\n")
    while True:
        if not select.select([terminal], [], [], _IDLE)[0]:
            yield screen.text
            select.select([terminal], [], [])
        try:
            found = os.read(terminal, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not found:
            break
        screen.feed(decoder.decode(found))
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status:
        raise RuntimeError(f"{shlex.join(command)} ended with {status}:\n{screen.text}")
    yield screen.text


def picture(text: str, title: str) -> str:
    """A terminal's text as an SVG, which needs no network."""
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(text), soft_wrap=False)
    return _FONTS.sub("", console.export_svg(title=title))  # they would be fetched


def main(arguments: Sequence[str]) -> None:
    """Run the command, write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the pictures are written")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what runs, with its arguments")
    given = parser.parse_args(arguments)
    if not given.command:
        parser.error("give the command that is to be run")
    shown, most = {}, 1
    for text in moments(given.command):
        shown["end"] = text
        rows = min(len(_PROGRESS.findall(re.sub(r"\x1b\[[\d;]*m", "", text))), 2)
        if rows >= most:  # rather one of the trials with the finetune that is trained
            shown["live"], most = text, rows
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, text in shown.items():
        path = given.folder / f"terminal-{name}.svg"
        with atomic_path(path) as temporary:
            temporary.write_text(picture(text, given.command[0]), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
