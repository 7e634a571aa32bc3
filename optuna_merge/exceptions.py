"""Errors that a user may want to tell apart. Bad arguments raise `ValueError` or `TypeError`."""

from __future__ import annotations


class OptunaMergeError(Exception):
    """Base class of the errors below."""


class CorruptFileError(OptunaMergeError):
    """A file's bytes do not match the content hash that was written with them."""


class DefinitionMismatchError(OptunaMergeError):
    """A study was made with another definition (tasks, data, body, posteriors) or direction."""


class TrainingDivergedError(OptunaMergeError):
    """A loss or a gradient became NaN or infinite during finetuning."""


class NotFiniteError(OptunaMergeError):
    """A metric, a score or a curvature is NaN or infinite, so that nothing can be built on it."""


class StorageUnavailableError(OptunaMergeError):
    """The study's storage, or its artifact store, can't be opened or reached."""


class TrialLostError(OptunaMergeError):
    """Another worker declared this worker's trial dead and has taken it over."""


class ProgramError(OptunaMergeError):
    """A training program failed, or didn't deliver what a study needs."""
