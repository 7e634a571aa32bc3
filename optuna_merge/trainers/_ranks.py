"""The processes of one launch, by torchrun, say: rank 0 leads, the others do what it tells them.

Rank 0 alone knows the study. It tells the others what is to be done together, and that it ends.
Messages go over a connection of the CPUs, which waits for as long as rank 0 is busy otherwise.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch.distributed as dist
from torch import Tensor

from optuna_merge.exceptions import DefinitionMismatchError, ProgramError

_PATIENCE = datetime.timedelta(weeks=8)


class Ranks:
    """All processes of the launch, of equal definitions; without a launch this process alone."""

    _led: Ranks | None = None
    """The one of this process, whose rank 0 the others follow to their end."""

    def __init__(self, definition: str) -> None:
        launched = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.size, self.leads = dist.get_world_size() if launched else 1, True
        self._lost_by: BaseException | None = None
        if not launched:
            return
        self.leads = dist.get_rank() == 0
        group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._group, Ranks._led = group, self
        definitions: list[Any] = [None] * self.size
        dist.all_gather_object(definitions, definition, group=group)
        if len(set(definitions)) > 1:
            raise DefinitionMismatchError(
                "the processes of this launch have different definitions (model, data, training "
                "arguments); make_trainer and the tasks must not depend on the process"
            )
        if self.leads:
            atexit.register(self._end)

    @classmethod
    def refuse_a_second(cls) -> None:
        """See that this launch has no study yet: the other processes follow one to its end."""
        if cls._led is not None:
            raise ProgramError(
                "from_trainer was called twice in a launch of several processes, of which all "
                "but rank 0 follow the first call until the end; launch one script for each study"
            )

    def tell(self, message: Any = None) -> Any:
        """Rank 0's message, in all processes."""
        if self.size == 1:
            return message
        box = [message]
        dist.broadcast_object_list(box, 0, group=self._group)
        return box[0]

    def meet(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            dist.barrier(group=self._group)

    def shared(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, in all processes; the others give one of its size and device."""
        if self.size > 1:
            tensor = tensor.contiguous()
            dist.broadcast(tensor, 0)
        return tensor

    @contextmanager
    def all_do(self, *command: Any) -> Iterator[None]:
        """Within this block of rank 0 the others do what the command says.

        After an error in it nobody knows where the others stand: nothing is done together any
        more. (What a report raises is no such error: all processes agree on it, see `decided`.)
        """
        if self._lost_by is not None:
            raise ProgramError(
                f"the {self.size} processes of this launch lost each other by an error "
                f"({type(self._lost_by).__name__}: {self._lost_by}); start the same command "
                f"again, which goes on from the newest checkpoint"
            )
        self.tell(command)
        try:
            yield
        except BaseException as error:
            self._lost_by = error if self.size > 1 else None
            raise

    def decided(self, report: Callable[[], object]) -> BaseException | None:
        """Have rank 0 report; what that raises is known to all, as a reason to stop."""
        raised: BaseException | None = None
        if self.leads:
            try:
                report()
            except BaseException as error:
                raised = error
        stops = self.tell(raised is not None)
        return (raised or StopFollowing()) if stops else None

    def follow(self, do: Callable[..., object]) -> NoReturn:
        """Do what rank 0 says until it ends or is killed, and end then, too."""
        while True:
            try:
                command = self.tell()
            except RuntimeError as error:
                raise ProgramError(
                    "rank 0 has ended without a word, so this process of its launch ends, too; "
                    "start the same command again, which goes on from the newest checkpoint"
                ) from error
            if command is None:
                _leave()
                raise SystemExit(0)
            do(*command)

    def _end(self) -> None:
        """Tell the others, who wait for a command, that none will come."""
        if self._lost_by is None and dist.is_initialized():
            with contextlib.suppress(RuntimeError):  # they are gone
                self.tell(None)
            _leave()


def _leave() -> None:
    """End the connections, whose threads may otherwise abort an interpreter that ends."""
    if dist.is_initialized():
        dist.destroy_process_group()


class StopFollowing(Exception):
    """Rank 0 has a reason to stop, which it alone knows."""
