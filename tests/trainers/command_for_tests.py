"""A training command for tests: examples/tiny/command.py with faults on request.

python command_for_tests.py FAULT train ...
"""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "tiny" / "command.py"
fault, mode, *arguments = sys.argv[1:]
sys.argv = [str(SCRIPT), mode, *arguments]
if mode == "evaluate" and fault.startswith("evaluation-"):
    print({"evaluation-missing": '{"math": 1.0}', "evaluation-text": "all is well"}[fault])
    sys.exit(0)
if mode == "train":
    folder = Path(arguments[0])
    lines = folder / "metrics.jsonl"
    with (folder / "calls").open("a") as calls:
        calls.write(f"{os.getpid()}\n")
    if fault == "exit":
        print("out of memory, said the script")
        sys.exit(3)
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "nothing":
        sys.exit(0)
    if fault == "bad-line":
        lines.write_text("epoch 1: fine\n")
    if fault == "missing":
        lines.write_text('{"step": 10, "metrics": {"math": 1, "maths": 1}}\n')
    if fault == "no-number":
        lines.write_text('{"step": 10, "metrics": {"math": "1", "chat": 1}}\n')
    if fault == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if fault == "torn":  # between a checkpoint and its line, once
        write, many = Path.open, lines.exists() and len(lines.read_text().splitlines())

        def torn(path: Path, *given: Any, **more: Any) -> Any:
            if path == lines and path.exists() and not many:
                os.kill(os.getpid(), signal.SIGKILL)
            return write(path, *given, **more)

        Path.open = torn  # type: ignore[method-assign]
    if fault == "child":
        subprocess.Popen(["sleep", "1000"])
    if fault == "slow" and not (folder / "go").exists():
        while not (folder / "go").exists():
            time.sleep(0.05)
    if fault == "silent":
        lines.symlink_to(os.devnull)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    if fault in ("stubborn", "endless"):
        time.sleep(1000)
    if fault == "silent":
        lines.unlink()
else:
    runpy.run_path(str(SCRIPT), run_name="__main__")
