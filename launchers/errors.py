"""What can go wrong before or around a sweep, each with what to do about it.

LauncherError
├── SweepFileError     the sweep file cannot be read or says something impossible
├── FolderError        the sweep's folder or database cannot be used
├── SchedulerDownError the scheduler does not answer
└── SweepStoppedError  the sweep cannot go on
"""


class LauncherError(Exception):
    """Shown to the user as it is, without a traceback."""


class SweepFileError(LauncherError):
    """The sweep file cannot be read, or a value in it is impossible."""


class FolderError(LauncherError):
    """The sweep's folder cannot be written, is in use, or holds another sweep."""


class SchedulerDownError(LauncherError):
    """The scheduler gives no answer, or takes no more jobs at the moment."""


class SweepStoppedError(LauncherError):
    """The sweep cannot go on, such as when nothing that it starts succeeds."""
