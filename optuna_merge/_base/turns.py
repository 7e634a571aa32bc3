"""Threads of one process take turns at models: what uses one holds the process's one lock.

A study's model is one mutable object, into which merges and finetunes are put in turn, and
dropout, transforms of data and sampled labels draw from generators of the whole process. So two
threads may not even use two models at once: each would get numbers of the other's sequence. To
work at the same time there are processes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_model_lock = threading.RLock()


@contextmanager
def models_turn() -> Iterator[None]:
    """Within this block no other thread of the process uses a model; also a decorator.

    Re-entrant. It comes before the lock of a file that is waited for, never after it: of two
    threads that take them in different orders each waits for the other.
    """
    with _model_lock:
        yield
