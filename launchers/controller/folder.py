"""A sweep's folder: how it is configured, who works on it, and what commands ask of them.

sweep.json        the sweep file as it was last followed
sweep.id          what the names of the sweep's jobs begin with
controller.lock   held by the controller at work
cancel            from a command: the controller shall cancel its jobs and end
changed           from a command: the study has changed
jobs/             a folder for each attempt at a trial, and a file for each trial
shared/           one folder for all jobs
checkpoints/      a folder for each trial, for all attempts at it
"""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from carbs.launchers.controller.config import SweepConfig
from carbs.launchers.controller.database import has_password
from carbs.launchers.errors import FolderError

CONFIG_FILE = "sweep.json"

_ID = "sweep.id"
_LOCK = "controller.lock"
_CANCEL = "cancel"
_CHANGED = "changed"


def make_folder(folder: Path) -> None:
    """Make a sweep's folder, where it is not, with those below it.

    Raises:
        FolderError: it cannot be written.
    """
    try:
        for name in ("jobs", "shared", "checkpoints"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FolderError(
            f"cannot write the sweep's folder {folder} ({error.strerror}): "
            "name another with --folder"
        ) from None
    if not os.access(folder, os.W_OK):
        raise FolderError(f"cannot write into {folder}: name another with --folder")


def sweep_id(folder: Path) -> str:
    """What tells the sweep's jobs from all others, also from those of a folder of the same name."""
    file = folder / _ID
    if not file.exists():
        draft = folder / f"{_ID}.{uuid.uuid4().hex}"
        name = re.sub(r"[^\w.-]+", "-", folder.name)[:40]
        draft.write_text(f"{name}-{uuid.uuid4().hex[:8]}")
        draft.replace(file)
    return file.read_text()


def has_begun(folder: Path) -> bool:
    """Whether the folder holds a sweep."""
    return (folder / CONFIG_FILE).exists()


def read_config(folder: Path) -> SweepConfig:
    """How the sweep in a folder was last configured.

    Raises:
        FolderError: the folder holds no sweep.
    """
    try:
        return SweepConfig.model_validate_json((folder / CONFIG_FILE).read_text())
    except FileNotFoundError:
        raise FolderError(
            f"{folder} holds no sweep ({CONFIG_FILE} is missing): name the --folder of a sweep"
        ) from None


def last_config(folder: Path) -> SweepConfig | None:
    """As :func:`read_config`; None where there is no sweep, or one of another release."""
    with suppress(FolderError, ValueError):
        return read_config(folder)
    return None


def write_config(folder: Path, config: SweepConfig) -> None:
    """Keep how the sweep is configured, but for its warm start, which is read once.

    A database's URL with a password in it is kept nowhere; one with a variable in its place is.
    """
    left_out = {"warm_start"}
    if config.storage is not None and has_password(config.storage):
        left_out.add("storage")
    text = config.model_dump_json(indent=1, exclude=left_out)
    (folder / CONFIG_FILE).write_text(text + "\n")


def take_lock(folder: Path, timeout_s: float = 0) -> FileLock | None:
    """The controller's lock, held from now on; None where another holds it for so long."""
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        return None
    return lock


def has_controller(folder: Path) -> bool | None:
    """Whether a controller is at work; None where its lock cannot be looked at."""
    try:
        lock = take_lock(folder)
    except OSError:
        return None
    if lock is not None:
        lock.release()
    return lock is None


def request_cancel(folder: Path) -> None:
    """Ask the controller at work to cancel its jobs and to end."""
    (folder / _CANCEL).touch()


def is_cancel_requested(folder: Path) -> bool:
    return (folder / _CANCEL).exists()


def withdraw_cancel(folder: Path) -> None:
    (folder / _CANCEL).unlink(missing_ok=True)


def note_change(folder: Path) -> None:
    """Have a controller at work read the study anew."""
    (folder / _CHANGED).write_text(uuid.uuid4().hex)


def last_change(folder: Path) -> float | None:
    """When a command has last changed the study, in Unix time; None where none has."""
    try:
        return (folder / _CHANGED).stat().st_mtime
    except FileNotFoundError:
        return None
