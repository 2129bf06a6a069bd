"""What is kept of a study beside it, so that it can be made anew where it is lost.

Beside the folders of its jobs a trial has a file, ``jobs/00017.json``, which is written whenever
something of it is: its parameters, its attributes, and in the end how it ended. The file of an
SQLite study is copied now and then. What is made of these:
:mod:`carbs.launchers.controller.recovery`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial
from pydantic import BaseModel, ConfigDict

# The study's file is copied when so many trials have ended since, or a twentieth of all.
_COPY_EVERY = 10


class KeptTrial(BaseModel):
    """``jobs/00017.json``: a trial as the study has it.

    Attributes:
        params: by flat name.
        attributes: Optuna's user attributes.
        began, ended: Unix time.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="constants")

    number: int
    state: str
    values: list[float] | None = None
    params: dict[str, Any]
    attributes: dict[str, Any]
    began: float | None = None
    ended: float | None = None

    @classmethod
    def of(cls, trial: FrozenTrial) -> KeptTrial:
        return cls(
            number=trial.number,
            state=trial.state.name,
            values=trial.values,
            params=trial.params,
            attributes=trial.user_attrs,
            began=_seconds(trial.datetime_start),
            ended=_seconds(trial.datetime_complete),
        )


class Backup:
    """Of one study.

    Args:
        folder: of the sweep.
        database: the file of an SQLite study; None for another database, which is not copied.
        notify: told where no copy can be made.
    """

    def __init__(self, folder: Path, database: Path | None, notify: Callable[[str], None]) -> None:
        self._folder = folder
        self._database = database
        self._notify = notify
        self._n_ended_since_copy = 0

    def keep(self, trial: FrozenTrial) -> None:
        """Write down beside its jobs what the study has of a trial."""
        file = self._folder / "jobs" / f"{trial.number:05d}.json"
        draft = file.with_suffix(".tmp")
        with suppress(OSError):  # the study has it
            draft.write_text(KeptTrial.of(trial).model_dump_json())
            draft.replace(file)

    def keep_ended(self, trial: FrozenTrial, n_trials: int) -> None:
        """The same for one of so many that has just ended; now and then the database is copied."""
        self.keep(trial)
        self._n_ended_since_copy += 1
        if self._n_ended_since_copy >= max(_COPY_EVERY, n_trials // 20):
            self.copy()

    def copy(self) -> None:
        """Replace the copy of the database by a new one, consistent also while others write.

        Where that is not possible, the old one stays.
        """
        self._n_ended_since_copy = 0
        if self._database is None:
            return
        copy = copy_of(self._database)
        draft = copy.with_name(copy.name + ".tmp")
        try:
            draft.unlink(missing_ok=True)
            with (
                closing(sqlite3.connect(self._database)) as source,
                closing(sqlite3.connect(draft)) as target,
            ):
                source.backup(target)
            draft.replace(copy)
        except (OSError, sqlite3.Error) as error:
            self._notify(f"warning: no copy of {self._database} could be made: {error}")


def copy_of(database: Path) -> Path:
    """Where the copy of a database lies."""
    return database.with_name(f"{database.stem}-copy{database.suffix}")


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()
