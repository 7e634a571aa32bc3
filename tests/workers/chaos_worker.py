"""A nursery of worker processes for `test_chaos.py`: forked, so that one starts in a moment.

Reads lines of JSON, `{"name": ..., "flags": [...]}`, and starts for each a process that runs a
small study of the digits by the command line's own code; writes `["started", name, pid]` and
`["ended", pid, exit code]`. A line is appended to the file `ENDS` for every finetune that was
trained to its end. What differs from the product: short heartbeats, many retries, and an artifact
store that fails in a tenth of its calls.
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import botorch  # noqa: F401 (imported here once, not by every worker)
import optuna_dashboard  # noqa: F401
import plotly.graph_objects  # noqa: F401
import torch
from digits_study import definition
from optuna.artifacts import FileSystemArtifactStore

from optuna_merge import storages
from optuna_merge.artifacts import _stores
from optuna_merge.cli import script
from optuna_merge.finetuning import _store

ENDS, STEPS, GRACE = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
SHARE = 0.1  # of the artifact store's calls that fail

torch.set_num_threads(1)
finetune = _store.finetune
failures = random.Random()


class FailingStore(FileSystemArtifactStore):
    """Fails before, or half-way through, a tenth of its calls."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        if self._fails("open"):
            raise ConnectionError("no connection")
        with super().open_reader(artifact_id) as file:
            content = file.read()
        return _Breaking(content) if self._fails("read") else io.BytesIO(content)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        if self._fails("write"):
            half = io.BytesIO(content_body.read()[:1000])
            super().write(artifact_id, half)
            raise ConnectionError("the connection broke")
        super().write(artifact_id, content_body)

    def _fails(self, call: str) -> bool:
        fails = failures.random() < SHARE
        note(f"{'failed' if fails else 'did'} {call}")
        return fails


class _Breaking(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise ConnectionError("the connection broke")


def note(line: str) -> None:
    descriptor = os.open(ENDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def noted_finetune(model: Any, tasks: Any, weights: Any, settings: Any, **options: Any) -> Any:
    result = finetune(model, tasks, weights, settings, **options)
    if result.resumed_at < result.steps:
        folder = options["checkpoint"].parent
        note(f"ended {folder.parents[2].name} {folder.name}")
    return result


def start(name: str, flags: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.dup2(2, 1)  # what the worker prints is no word of the nursery's
        failures.seed(os.getpid())
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.argv = [name, *flags]
        script(lambda: definition(STEPS), name="chaos", n_trials=0)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    _store.finetune = noted_finetune
    _stores.FileSystemArtifactStore = FailingStore  # type: ignore[misc]
    storages.create_storage = functools.partial(
        storages.create_storage,
        heartbeat_interval=1,
        grace_period=GRACE,
        max_retry=1000,
        patience=120,
    )
    lock = threading.Lock()
    born = threading.Semaphore(0)

    def say(*words: Any) -> None:
        with lock:
            print(json.dumps(words), flush=True)

    def reap() -> None:
        while True:
            born.acquire()
            pid, status = os.wait()
            say("ended", pid, os.waitstatus_to_exitcode(status))

    say("ready")
    threading.Thread(target=reap, daemon=True).start()
    for line in sys.stdin:
        order = json.loads(line)
        with lock:  # no process shall end before it was said to have started
            pid = start(order["name"], order["flags"])
            print(json.dumps(["started", order["name"], pid]), flush=True)
        born.release()


if __name__ == "__main__":
    main()
