"""The error of files of weights."""

from __future__ import annotations

from collections.abc import Sequence


class WeightsError(ValueError):
    """A file of weights that cannot be read, written or used.

    The message is one line. It names the first of many keys, and the attributes hold them all.

    Attributes:
      missing: keys of the network that the file lacks.
      unexpected: keys of the file that the network lacks.
      misshapen: keys of both, with different shapes.
    """

    def __init__(
        self,
        message: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        misshapen: Sequence[str] = (),
    ):
        super().__init__(message)
        self.missing = tuple(missing)
        self.unexpected = tuple(unexpected)
        self.misshapen = tuple(misshapen)


class NoEntriesError(WeightsError):
    """An entry is missing from a file that holds arrays only, without entries of a checkpoint."""
