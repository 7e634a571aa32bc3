"""The tests that need CUDA: passed, failed and skipped, with what failed.

In the miniature, without a GPU, all of them are skipped.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from studies.gpu.findings import Findings, findings_of_command

FOLDER = "tests/gpu"


def run_tests(found: Findings) -> None:
    """Run them, and write down what came of each."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Without what the other tests need: plugins, databases, a browser.
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", FOLDER]
        command += ["--override-ini", "addopts=", f"--confcutdir={FOLDER}"]
        command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
        if find_spec("pytest_timeout") is not None:
            command += ["--timeout", "60"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-1500:]}")
        found.put("tests", outcomes(report))
    # Also where tests fail this part has done what it is for; 5: none was collected.
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout[-1500:]}")


def outcomes(report: Path) -> dict[str, Any]:
    """Names by outcome from a JUnit report, and of failed tests the last lines."""
    found: dict[str, Any] = {"passed": [], "failed": {}, "skipped": {}}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if bad:
            found["failed"][name] = (bad[0].text or bad[0].get("message") or "")[-1500:]
        elif skipped is not None:
            found["skipped"][name] = skipped.get("message")
        else:
            found["passed"].append(name)
    return found


if __name__ == "__main__":
    run_tests(findings_of_command()[0])
