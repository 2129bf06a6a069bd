"""A study that is lost is made anew: from what was kept beside it, and from the jobs' folders.

A trial of which only the job's folder is left is taken up as running: the next controller reads its
report, finds its job, or starts it again, as it would after any interruption.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from carbs.launchers.controller.backup import KeptTrial, copy_of
from carbs.launchers.controller.config import SweepConfig
from carbs.launchers.controller.database import (
    database_file,
    database_url,
    open_study,
    without_password,
)
from carbs.launchers.controller.folder import read_config, take_lock
from carbs.launchers.controller.ledger import JOB, OWNER
from carbs.launchers.controller.sweep import CONSTRAINTS, SPACE, Sweep
from carbs.launchers.controller.trials import RunningTrials
from carbs.launchers.errors import FolderError
from carbs.launchers.job.files import Stopped, has_job, read_job, read_report
from carbs.search_space import SearchSpace
from carbs.study import DROPPED, EARLIER_VALUES, FORGOTTEN, distributions, flatten

_SIDE_FILES = ("-journal", "-wal", "-shm")


@dataclass
class Recovered:
    """What a study was made of.

    Attributes:
        n_trials: in all.
        n_copied: that only the copy of the database had.
        untold: what could not be told, a line for each.
        damaged: where the old database is now; None where there was none.
    """

    n_trials: int = 0
    n_copied: int = 0
    untold: list[str] = field(default_factory=list)
    damaged: Path | None = None


def recover_study(folder: Path, storage: str | None = None) -> Recovered:
    """Make the study of the sweep in a folder anew from what else is there.

    Args:
        folder: of the sweep.
        storage: the database's URL, where the folder does not say it.

    Raises:
        FolderError: there is no sweep, a controller is at work, the study can be read, or nothing
            is left to make it of.
    """
    folder = folder.resolve()
    config = read_config(folder)
    if storage is not None:
        config = config.model_copy(update={"storage": storage, "storage_file": None})
    lock = take_lock(folder)
    if lock is None:
        raise FolderError(f"a controller is running the sweep in {folder}: stop it first")
    try:
        recovered = _recover(config, folder)
        sweep = Sweep(config, folder)
        RunningTrials(sweep).collect()
        sweep.backup.copy()
    finally:
        lock.release()
    return recovered


def _recover(config: SweepConfig, folder: Path) -> Recovered:
    url = database_url(config.storage, config.storage_file)
    database = database_file(folder, url)
    there = _readable(config, database, url)
    if there:
        raise FolderError(
            f"the study {config.name!r} can be read and holds {there} trials: nothing is lost. To "
            f"make it anew all the same, first move it away"
            + (f": mv {database} {database}.old" if database is not None else "")
        )
    trials, attributes, n_copied, recovered = _gather(config, folder, database)
    if not trials:
        raise FolderError(f"{folder} holds no trials in jobs/ and no copy of a study")
    if database is None:
        _fill(open_study(config.name, folder, url, config.direction), trials, attributes)
    else:
        with TemporaryDirectory(dir=database.parent) as aside:
            new = Path(aside) / database.name
            study = open_study(config.name, folder, f"sqlite:///{new}", config.direction)
            _fill(study, trials, attributes)
            _close(study)
            recovered.damaged = _move_aside(database)
            new.replace(database)
    recovered.n_trials, recovered.n_copied = len(trials), n_copied
    return recovered


def _readable(config: SweepConfig, database: Path | None, url: str | None) -> int:
    """How many trials the study has; 0 where it cannot be read."""
    if database is not None and not database.exists():
        return 0
    try:
        storage = str(url) if database is None else f"sqlite:///{database}"
        study = optuna.load_study(study_name=config.name, storage=storage)
        n_trials = len(study.get_trials(deepcopy=False))
        _close(study)
        return n_trials
    except (SQLAlchemyError, StorageInternalError, KeyError, ValueError, AssertionError) as error:
        if database is None and not isinstance(error, KeyError):
            raise FolderError(
                f"{without_password(str(url))} does not answer: its administrator must mend it"
            ) from None
        return 0


def _gather(
    config: SweepConfig, folder: Path, database: Path | None
) -> tuple[list[FrozenTrial], dict[str, Any], int, Recovered]:
    """Trials by number without a gap, and the study's attributes."""
    recovered = Recovered()
    space = SearchSpace(config.parameters, config.constraints)
    copied, attributes = _copied(config, database)
    if not copied:
        recovered.untold.append(
            "there is no copy of the study: which trials were dropped, and which nodes were "
            "excluded, is not known"
        )
    attributes.setdefault(
        SPACE, json.dumps([param.model_dump(mode="json") for param in config.parameters])
    )
    attributes.setdefault(CONSTRAINTS, config.constraints)
    attributes.setdefault(EARLIER_VALUES, flatten(config.was))
    known = distributions(space)
    kept = {trial.number: trial for trial in _kept(folder, known, recovered)}
    jobs = dict(_job_folders(folder))
    owner = (folder / "sweep.id").read_text() if (folder / "sweep.id").exists() else ""
    trials, n_copied = [], 0
    for number in range(1 + max([*copied, *kept, *jobs], default=-1)):
        old = copied.get(number)
        if number in kept:
            trials.append(kept[number])
        elif old is not None and (old.state != TrialState.RUNNING or number not in jobs):
            trials.append(old)
            n_copied += 1
        elif number in jobs:
            trials.append(_of_job(number, jobs[number], owner, known, recovered))
        else:
            recovered.untold.append(f"trial {number}: nothing of it is left")
            trials.append(_lost(number, "nothing of it was left", {}, {}))
    return trials, attributes, n_copied, recovered


def _copied(
    config: SweepConfig, database: Path | None
) -> tuple[dict[int, FrozenTrial], dict[str, Any]]:
    if database is None or not copy_of(database).exists():
        return {}, {}
    with suppress(SQLAlchemyError, StorageInternalError, KeyError, ValueError, AssertionError):
        storage = f"sqlite:///{copy_of(database)}"
        study = optuna.load_study(study_name=config.name, storage=storage)
        trials = {trial.number: trial for trial in study.trials}
        attributes = dict(study.user_attrs)
        _close(study)
        return trials, attributes
    return {}, {}


def _kept(
    folder: Path, known: Mapping[str, BaseDistribution], recovered: Recovered
) -> Iterator[FrozenTrial]:
    for file in sorted((folder / "jobs").glob("*.json")):
        if not re.fullmatch(r"\d+", file.stem):
            continue
        try:
            kept = KeptTrial.model_validate_json(file.read_bytes())
            params, used = _with_distributions(kept.params, known)
        except (OSError, ValidationError, ValueError) as error:
            recovered.untold.append(f"{file}: {str(error).splitlines()[0]}")
            continue
        yield FrozenTrial(
            number=kept.number,
            trial_id=-1,
            state=TrialState[kept.state],
            value=None,
            values=kept.values,
            datetime_start=_time(kept.began),
            datetime_complete=_time(kept.ended),
            params=params,
            distributions=used,
            user_attrs=kept.attributes,
            system_attrs={},
            intermediate_values={},
        )


def _job_folders(folder: Path) -> Iterator[tuple[int, Path]]:
    """The newest attempt's folder of each trial that has any with a job file."""
    found: dict[int, tuple[int, Path]] = {}
    for path in (folder / "jobs").glob("*-*"):
        named = re.fullmatch(r"(\d+)-(\d+)", path.name)
        if named is not None and has_job(path):
            number, attempt = int(named[1]), int(named[2])
            found[number] = max(found.get(number, (0, path)), (attempt, path))
    yield from ((number, path) for number, (_, path) in found.items())


def _of_job(
    number: int,
    path: Path,
    owner: str,
    known: Mapping[str, BaseDistribution],
    recovered: Recovered,
) -> FrozenTrial:
    """A trial of which only the job's folder is left: as running, with this attempt."""
    try:
        job = read_job(path)
        params, used = _with_distributions(flatten(job.params), known)
        report = read_report(path)
    except (OSError, ValueError) as error:
        recovered.untold.append(f"trial {number}: {path}: {str(error).splitlines()[0]}")
        return _lost(number, f"{path.name} could not be read", {}, {})
    if isinstance(report, Stopped):
        recovered.untold.append(f"trial {number}: it was stopped early, its forecast is lost")
        return _lost(number, "it was stopped early, its forecast is lost", params, used)
    attempt = {
        "attempt": job.attempt,
        "folder": f"jobs/{path.name}",
        "logs": f"jobs/{path.name}",
        "name": f"{owner}-{path.name}",
    }
    return FrozenTrial(
        number=number,
        trial_id=-1,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=datetime.now(),
        datetime_complete=None,
        params=params,
        distributions=used,
        user_attrs={OWNER: owner, JOB: attempt},
        system_attrs={},
        intermediate_values={},
    )


def _lost(
    number: int, reason: str, params: dict[str, Any], used: dict[str, BaseDistribution]
) -> FrozenTrial:
    now = datetime.now()
    return FrozenTrial(
        number=number,
        trial_id=-1,
        state=TrialState.FAIL,
        value=None,
        datetime_start=now,
        datetime_complete=now,
        params=params,
        distributions=used,
        user_attrs={FORGOTTEN: reason},
        system_attrs={},
        intermediate_values={},
    )


def _with_distributions(
    params: Mapping[str, Any], known: Mapping[str, BaseDistribution]
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """With those of the space; a number that it lacks, such as an old weight, has its own."""
    used: dict[str, BaseDistribution] = {}
    for name, value in params.items():
        if name in known:
            known[name].to_internal_repr(value)  # ValueError where it is no choice
            used[name] = known[name]
        elif isinstance(value, float):
            used[name] = FloatDistribution(-1e300, 1e300)
    return {name: params[name] for name in used}, used


def _fill(study: Study, trials: list[FrozenTrial], attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    for trial in trials:
        study._storage.create_new_trial(study._study_id, trial)
    if DROPPED in attributes:
        study.set_user_attr(DROPPED, attributes[DROPPED])


def _close(study: Study) -> None:
    """SQLite's file must not be open when it is moved."""
    backend: Any = getattr(study._storage, "_backend", study._storage)
    backend.remove_session()
    backend.engine.dispose()


def _move_aside(database: Path) -> Path | None:
    if not database.exists():
        return None
    number = 1
    while (aside := database.with_name(f"{database.name}.damaged-{number}")).exists():
        number += 1
    database.replace(aside)
    for suffix in _SIDE_FILES:
        side = database.with_name(database.name + suffix)
        if side.exists():
            side.replace(aside.with_name(aside.name + suffix))
    return aside


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds)
