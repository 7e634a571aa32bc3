"""Eight minutes on one GPU: the tests that need CUDA, a language mixture, speed; one JSON.

    python studies/gpu/run.py gpu.json --wheels .whl --smollm FOLDER --cache FOLDER

No network is needed. What the machine's Python lacks is installed from the wheel folder into a
temporary one. The folder of SmolLM2-135M holds its GGUF file, in pieces of any names that sort
(`model.gguf.0`, `model.gguf.1`), or a `from_pretrained` folder; without it the body is a random
Llama of that shape, and the JSON says so. The cache folder has the archives of the mixture study's
data (`studies/mixture/data.py`); without them the tasks are packages of the standard library.

Each part is a process with a time limit of its own. One that fails or runs out of time is written
down with its error and with what it had found; the others go on. Exit status 1 says that there was
such a part. Without a GPU the same command is a miniature (`--miniature`), which two idle cores do
in less than two minutes; its limits are longer.

This file needs the standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """A part of the run.

    Attributes:
        name: Its key in the JSON, and its module here.
        seconds: Its time limit on a GPU.
        miniature: Its time limit without one.
        share: Of its limit, what it is told that it has; it needs the rest to start and to end.
    """

    name: str
    seconds: float
    miniature: float
    share: float = 0.85


PARTS = (
    Part("machine", 30, 60),
    Part("cuda_tests", 80, 120, share=1.0),
    Part("speed", 100, 120),
    Part("mixture", 250, 180),
)
"""In order, the limits together under eight minutes; what a part leaves is lost, not handed on."""


def run_part(
    part: Part, options: Sequence[str], *, miniature: bool, environment: Mapping[str, str]
) -> dict[str, Any]:
    """What a part found, and what became of it.

    Args:
        part: The part.
        options: Further flags of its module.
        miniature: Whether it is to be the small one.
        environment: Of its process.

    Returns:
        Its findings with `seconds`, and with `error` where it failed or ran out of time.
    """
    limit = part.miniature if miniature else part.seconds
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", f"studies.gpu.{part.name}", str(found)]
        command += ["--seconds", str(part.share * limit), *options]
        command += ["--miniature"] if miniature else []
        started = time.monotonic()
        error = output = ""
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=limit,
            )
            output = done.stdout
            if done.returncode:
                error = f"exit status {done.returncode}"
        except subprocess.TimeoutExpired as late:
            spoken: Any = late.stdout or b""  # bytes, also where text was asked for
            output = spoken if isinstance(spoken, str) else spoken.decode(errors="replace")
            error = f"stopped after {limit:g} s"
        result: dict[str, Any] = json.loads(found.read_text()) if found.is_file() else {}
        result["seconds"] = round(time.monotonic() - started, 1)
        if error:
            result["error"] = error
            result["output"] = output[-4000:]
        return result


def install(wheels: Path, target: Path) -> None:
    """Put all wheels of a folder into another one, without dependencies or network.

    Raises:
        FileNotFoundError: there is none.
        subprocess.CalledProcessError: pip failed.
    """
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise FileNotFoundError(f"no wheels in {wheels}; leave --wheels out if none are needed")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-compile", "--target", str(target), *files], check=True)


def has_gpu(environment: Mapping[str, str]) -> bool:
    """Whether torch sees one, asked in a process of its own."""
    asked = [sys.executable, "-c", "import torch; raise SystemExit(not torch.cuda.is_available())"]
    return subprocess.run(asked, env=dict(environment), stderr=subprocess.DEVNULL).returncode == 0


def run(
    out: Path,
    parts: Sequence[Part],
    options: Sequence[str],
    *,
    miniature: bool,
    environment: Mapping[str, str],
) -> dict[str, Any]:
    """Run the parts one after the other; the JSON is written after each of them."""
    found: dict[str, Any] = {"miniature": miniature, "card": None, "parts": {}}
    for part in parts:
        wanted = options if part.name == "mixture" else ()
        result = run_part(part, wanted, miniature=miniature, environment=environment)
        found["parts"][part.name] = result
        if part.name == "machine":
            found["card"] = result.get("card")
        text = json.dumps(found, indent=1) + "\n"
        temporary = out.with_name(f".{out.name}.part")
        temporary.write_text(text)
        temporary.replace(out)
        print(f"{part.name}: {result.get('error', 'done')}, {result['seconds']} s", flush=True)
        if "error" in result:
            print(result["output"], flush=True)
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the JSON")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install first")
    parser.add_argument("--smollm", type=Path, help="folder of SmolLM2-135M")
    parser.add_argument("--cache", type=Path, help="folder of the mixture study's archives")
    parser.add_argument("--miniature", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument(
        "--parts", nargs="+", choices=[p.name for p in PARTS], help="default: all of them"
    )
    given = parser.parse_args()
    given.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        if given.wheels is not None:
            install(given.wheels, Path(site))
        path = os.pathsep.join([site, str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {
            "PYTHONPATH": path.rstrip(os.pathsep),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        miniature = given.miniature
        if miniature is None:
            miniature = not has_gpu(environment)
        options = []
        for flag in ("smollm", "cache"):
            if (folder := getattr(given, flag)) is not None:
                options += [f"--{flag}", str(folder.absolute())]
        parts = [p for p in PARTS if given.parts is None or p.name in given.parts]
        found = run(
            given.out.absolute(), parts, options, miniature=miniature, environment=environment
        )
    return int(any("error" in part for part in found["parts"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
