from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from commands.command_line import DEFINITION, TESTS, fails, prints


def test_fit(folder: Path) -> None:
    assert re.search(r"red: 0\.\d+ alone, 7 steps", prints("fit", "toy.py"))
    fitted = json.loads(prints("fit", "toy.py", "--json"))
    assert list(fitted["tasks"]) == ["red", "blue"]
    assert fitted["tasks"]["red"]["reused"]
    assert fitted["tasks"]["red"]["metrics"].keys() == {"accuracy"}
    assert Path(fitted["tasks"]["red"]["file"]).is_file()
    assert fitted["costs"]["task_run_steps"] == 14


def test_a_workdir_without_write_access_is_refused(folder: Path) -> None:
    told = fails("fit", "toy.py", "--workdir", "/proc/work")  # not even root may write there
    assert "can't write in the working folder /proc/work" in told


def test_a_sigint_in_the_middle_ends_with_130(folder: Path) -> None:
    Path("slow.py").write_text(
        DEFINITION.replace("return toy_definition()", "import os, signal, threading, time\n"
        # Shells let jobs in the background ignore it, and children inherit that.
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    def interrupt():\n"
        "        while not os.path.isdir('workdir/finetunes'):\n"
        "            time.sleep(0.1)\n"
        "        time.sleep(1.0)\n"  # what is imported on the way may swallow it
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "    threading.Thread(target=interrupt, daemon=True).start()\n"
        "    return toy_definition(finetuning=toy_settings(steps=10**6, num_rungs=1))")
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from optuna_merge.cli import main; main()", "fit", "slow.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])},
        timeout=300,
    )
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
