"""A sweep in its folder: its study, opened and held against the sweep file, and its jobs.

Here nothing is started: that does :class:`carbs.launchers.controller.control_loop.Controller`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial
from pydantic import TypeAdapter

from carbs.launchers.cluster.executors import Executor, make_executor
from carbs.launchers.controller.backup import Backup
from carbs.launchers.controller.changes import changes, changes_of_runs, earlier_values, left_out
from carbs.launchers.controller.config import SweepConfig
from carbs.launchers.controller.database import database_file, database_url, has_jobs, open_study
from carbs.launchers.controller.folder import (
    has_begun,
    last_config,
    make_folder,
    read_config,
    sweep_id,
    write_config,
)
from carbs.launchers.controller.jobs import Jobs
from carbs.launchers.controller.ledger import Ledger
from carbs.launchers.controller.nodes import Nodes
from carbs.launchers.controller.warm_start import keep_earlier, kept_earlier
from carbs.launchers.errors import FolderError
from carbs.records import Suggestion
from carbs.search_space import Param, SearchSpace
from carbs.study import EARLIER_VALUES, CarbsSampler, Records, flatten, kept_trials

# Attributes of the study: what is searched.
SPACE = "space"
CONSTRAINTS = "constraints"
COST = "cost"

_PARAMS = TypeAdapter(list[Param])
_OPENING_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Status:
    """A sweep at one moment.

    Attributes:
        spent: cost of everything that ended, failures and stopped runs included.
        reserved: predicted cost of what is running.
        last: the newest suggestion.
        trouble: what the sweep waits for, where the scheduler or the database does not answer.
    """

    config: SweepConfig
    records: Records
    spent: float
    reserved: float
    last: Suggestion | None
    trouble: str | None = None


class Sweep:
    """A sweep in its folder.

    Args:
        config: what the sweep file says.
        folder: of the study, the jobs and the report; made where it does not exist.
        python_path: where the training function is imported from, besides the usual places.
        executor: in place of the one that the configuration names.
        notify: told of what the user should know while the sweep goes on.
        clock: Unix time.
        study: in place of the one that the configuration names.
        may_begin: whether to begin one where there is none.

    Attributes:
        space: what is searched.
        sampler: makes the suggestions.
        ledger: the study's trials.
        nodes: the machines that the sweep keeps away from.
        jobs: that run its trials.
        backup: what is kept beside the study.

    Opening a sweep that has begun writes nothing: :meth:`follow_file` does.

    Raises:
        FolderError: the folder cannot be written, holds another sweep, or one over parameters that
            do not go together with these, or its study is gone.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: Path,
        python_path: tuple[str, ...] = (),
        *,
        executor: Executor | None = None,
        notify: Callable[[str], None] = lambda message: None,
        clock: Callable[[], float] = time.time,
        study: Study | None = None,
        may_begin: bool = True,
    ) -> None:
        self.config = config
        self.folder = folder.resolve()
        self.space = SearchSpace(config.parameters, config.constraints, config.cost)
        self.notify = notify
        make_folder(self.folder)
        if study is None:
            may_begin = may_begin and not has_jobs(self.folder)
            study = open_sweep_study(config, self.folder, may_begin=may_begin)
        self.study = study
        if SPACE in self.study.user_attrs:
            self._compared()
        else:
            keep_earlier(config, self.space, self.folder)
            self._write_down()
        self.sampler = CarbsSampler(
            config.parameters,
            constraints=config.constraints,
            earlier=kept_earlier(config, self.folder),
            seed=config.seed,
        )
        self.study.sampler = self.sampler
        id = sweep_id(self.folder)
        self.ledger = Ledger(self.study, self.space, id)
        self.nodes = Nodes(self.ledger, self.folder / "health", config.exclude_node_for_s, clock)
        self.jobs = Jobs(
            config,
            self.folder,
            id,
            python_path,
            executor or make_executor(config.executor, config.poll_s, config.grace_s),
            self.nodes.excluded,
            self.nodes.add,
            clock,
        )
        url = database_url(config.storage, config.storage_file)
        self.backup = Backup(self.folder, database_file(self.folder, url), notify)

    @classmethod
    def open(
        cls, folder: str | Path, storage: str | None = None, storage_file: str | None = None
    ) -> Sweep:
        """The sweep in a folder, as it was last configured.

        Args:
            folder: of the sweep.
            storage, storage_file: the database's URL or a file with it, where the folder does not
                say it.

        Raises:
            FolderError: the folder holds no sweep, or its study is gone.
        """
        folder = Path(folder)
        config = read_config(folder)
        if storage is not None or storage_file is not None:
            config = config.model_copy(update={"storage": storage, "storage_file": storage_file})
        return cls(config, folder, may_begin=False)

    def status(self) -> Status:
        """How the sweep stands, read from the study."""
        self.ledger.refresh()
        return self.known_status()

    def known_status(self) -> Status:
        """The same, as far as it is known here."""
        account = self.ledger.account()
        last = account.records.pending[-1] if account.records.pending else None
        return Status(
            self.config,
            account.records,
            account.spent,
            account.reserved,
            last,
            self.jobs.trouble,
        )

    def trial(self, number: int) -> FrozenTrial:
        """A trial as it is stored.

        Raises:
            FolderError: there is none of that number.
        """
        try:
            return self.ledger.read(number)
        except KeyError:
            raise FolderError(
                f"study {self.config.name!r} has no trial {number}: `carbs export` lists all"
            ) from None

    def follow_file(self) -> None:
        """Have the study and the folder say what the sweep file says; tell what is different.

        What was run with other parameters counts in the new space. For whoever holds the lock.
        """
        changed, earlier = self._compared()
        if earlier != self.study.user_attrs.get(EARLIER_VALUES, {}):
            self.study.set_user_attr(EARLIER_VALUES, earlier)
            self.ledger.refresh()
        self._write_down()
        if not changed:
            return
        self.notify("the sweep file has changed, what was run is kept:")
        for line in changed:
            self.notify(f"  {line}")
        for reason, n in left_out(kept_trials(self.study), self.space).items():
            self.notify(f"  {n} earlier runs cannot be read in the new space: {reason}")

    def _write_down(self) -> None:
        """What the sweep file says, in the study and the folder."""
        config, study = self.config, self.study
        space = json.dumps([param.model_dump(mode="json") for param in config.parameters])
        # The last two may change from run to run: what violates them is still data.
        for key, value in ((SPACE, space), (CONSTRAINTS, config.constraints), (COST, config.cost)):
            if key not in study.user_attrs or study.user_attrs[key] != value:
                study.set_user_attr(key, value)
        write_config(self.folder, config)

    def _compared(self) -> tuple[list[str], dict[str, Any]]:
        """The sweep file beside the study.

        Returns:
            What is different, a line for each; what earlier runs used of parameters added since.

        Raises:
            FolderError: the study cannot hold both.
        """
        config, study = self.config, self.study
        has_trials = study._storage.get_n_trials(study._study_id) > 0
        runs = self._changes_of_runs() if has_trials else []
        before = _PARAMS.validate_json(study.user_attrs[SPACE])
        changed = changes(before, config.parameters)
        kept = dict(study.user_attrs.get(EARLIER_VALUES, {}))
        if not changed and not kept:
            return runs, kept
        try:
            added = earlier_values(before, config.parameters, config.was) if has_trials else {}
        except ValueError as error:
            raise FolderError(
                f"study {config.name!r} in {self.folder} searches other parameters than the "
                f"sweep file, and cannot hold both:\n{error}\nTake the change back, or name "
                f"another --folder and learn from this one: warm_start: [{{folder: {self.folder}}}]"
            ) from None
        said = {name: value for name, value in flatten(config.was).items() if name in kept}
        return runs + changed, {**kept, **added, **said}

    def _changes_of_runs(self) -> list[str]:
        before, config = last_config(self.folder), self.config
        if before is None:
            return []
        is_same = before.is_cost_seconds and config.is_cost_seconds
        if before.cost_unit != config.cost_unit and not is_same:
            raise FolderError(
                f"what was run in {self.folder} has its cost in {before.cost_unit}, and the sweep "
                f"file says cost_unit: {config.cost_unit}: name another --folder, or take that back"
            )
        return changes_of_runs(before, config)


def open_sweep_study(config: SweepConfig, folder: Path, *, may_begin: bool) -> Study:
    """The study that a sweep file names.

    Args:
        config: what the sweep file says.
        folder: of the sweep.
        may_begin: whether to make the study where it is not.

    Raises:
        MissingStudyError: it is not there.
        FolderError: it cannot be opened, or is another one.
    """
    last = last_config(folder)
    if last is not None and last.name != config.name:
        raise FolderError(
            f"{folder} holds the study {last.name!r}, and the sweep file's name is "
            f"{config.name!r}: name another --folder, or go on with name: {last.name}"
        )
    url = database_url(config.storage, config.storage_file)
    # What has begun had its database: if that does not answer, it may be starting again.
    patience_s = _OPENING_PATIENCE_S if has_begun(folder) and url is not None else 0.0
    study = open_study(config.name, folder, url, config.direction, patience_s, may_begin=may_begin)
    directions = [direction.name.lower() for direction in study.directions]
    if directions[0] != config.direction:
        raise FolderError(
            f"study {config.name!r} in {folder} is to {directions[0]} its output, and the "
            f"sweep file says {config.direction}: name another --folder, or change direction"
        )
    return study
