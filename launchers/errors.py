"""What can go wrong before or around a sweep, each with what to do about it.

LauncherError
├── SweepFileError     the sweep file cannot be read or says something impossible
├── FolderError        the sweep's folder or database cannot be used
│   └── MissingStudyError  there is no study in it
├── SchedulerDownError the scheduler does not answer
├── MissingPackageError what an extra installs is not there
└── SweepStoppedError  the sweep cannot go on
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from carbs.launchers.controller.problems import Problem


class LauncherError(Exception):
    """Shown to the user as it is, without a traceback."""


class SweepFileError(LauncherError):
    """The sweep file cannot be read, or a value in it is impossible.

    Args:
        message: for the user.
        problems: the same one by one, where the file could be read.
    """

    def __init__(self, message: str, problems: Sequence[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class FolderError(LauncherError):
    """The sweep's folder cannot be written, is in use, or holds another sweep."""


class MissingStudyError(FolderError):
    """The study that a sweep's folder or database should hold is not there."""


class SchedulerDownError(LauncherError):
    """The scheduler gives no answer, or takes no more jobs at the moment."""


class SweepStoppedError(LauncherError):
    """The sweep cannot go on, such as when nothing that it starts succeeds."""


class MissingPackageError(LauncherError):
    """A package is not installed that one of the extras brings."""
