"""Torch on one thread, where matrices are small."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_threads_lock = threading.Lock()
_threads_users = 0
_threads_before = 1


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread inside; matrices of a few hundred rows only lose by more."""
    global _threads_users, _threads_before
    with _threads_lock:
        if _threads_users == 0:
            _threads_before = torch.get_num_threads()
        _threads_users += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads_lock:
            _threads_users -= 1
            if _threads_users == 0:
                torch.set_num_threads(_threads_before)
