"""The control loop: ask, submit, poll, and tell the study how each trial ended.

The study and the job folders hold all that matters; what the loop keeps in memory it can read from
them again. So a controller may die at any moment: the next one finds the running trials, looks for
their reports, re-attaches to jobs that are alive and resubmits those that are lost.

A trial goes through these steps, each written down before the next is taken:

    asked                 RUNNING, with its parameters and the sweep's id
    ``job.json``          what the job has to do
    attribute ``job``     the attempt: its folder, tier, and the name under which it is submitted
    attribute ``job``     the same with the scheduler's id
    ``curve.jsonl``       where the function reports its progress
    attribute ``stopped`` if it is to be stopped early, the forecast of its end; then ``stop.json``
    ``report.json``       written by the job, in one step
    told                  COMPLETE, PRUNED or FAIL, after its curve and metrics

What the study has of a trial is also written beside its jobs, and the study's file is copied now
and then (see :mod:`carbs.launchers.controller.recovery`).

Several controllers may work on one study, each in a folder of its own. A trial belongs to the
folder in which it was begun, and a folder to whoever holds its lock: so none is submitted twice.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from carbs.allowance import Allowance
from carbs.launchers.cluster.executors import Executor, SlurmExecutor, make_executor
from carbs.launchers.controller.attempts import Attempt, Ending, Jobs, Lost, PastAttempt, Run
from carbs.launchers.controller.changes import (
    changed_data,
    changes,
    changes_of_runs,
    data_versions,
    earlier_values,
    left_out,
)
from carbs.launchers.controller.config import SweepConfig
from carbs.launchers.controller.database import (
    database_file,
    database_url,
    has_jobs,
    has_password,
    open_study,
)
from carbs.launchers.controller.ledger import OWNER, Account, Ledger
from carbs.launchers.controller.nodes import Nodes
from carbs.launchers.controller.outcomes import BadConfiguration, Completed, StoppedRun
from carbs.launchers.controller.recovery import (
    Recovered,
    copy_database,
    keep_trial,
    recover,
)
from carbs.launchers.controller.warm_start import CONFIG_FILE, keep_earlier, kept_earlier
from carbs.launchers.errors import FolderError, SweepStoppedError
from carbs.launchers.job.protocol import Result
from carbs.launchers.loggers.loggers import Loggers
from carbs.launchers.loggers.runs import Summary, TrialRun
from carbs.records import Suggestion
from carbs.search_space import Param, SearchSpace
from carbs.spaces import Params
from carbs.study import (
    CURVE,
    DROPPED,
    EARLIER_VALUES,
    FORGOTTEN,
    PREDICTED,
    STOPPED,
    CarbsSampler,
    FrontPruner,
    Records,
    flatten,
    kept_trials,
    unflatten,
)

JOB = "job"
PAST = "attempts"
EVIDENCE = "evidence"
SPEED = "speed"
SPACE = "space"
CONSTRAINTS = "constraints"
COST = "cost"
DATA = "data"
RETRY_OF = "retry_of"

_ID = "sweep.id"
_LOCK = "controller.lock"
_CANCEL = "cancel"
_CHANGED = "changed"
_PARAMS = TypeAdapter(list[Param])
_POLL_S = 0.05
_REFRESH_S = 30.0
_SHARED_REFRESH_S = 1.0
# Who only looks whether a controller is there holds its lock for a moment.
_LOOK_S = 1.0
_OPENING_PATIENCE_S = 60.0
# Between the first Ctrl-C and the second.
_SECOND_CTRL_C_S = 2.0
# When this many trials have failed and none has finished, something is wrong with all of them.
_HOPELESS_FAILURES = 5
# How often the sampler is asked for a trial that the rest of the budget pays for, and by what its
# cap is lowered at least when it proposes a dearer one.
_N_SUGGESTIONS = 4
_LOWERED = 0.9
# The study's file is copied when so many trials have ended since, or a twentieth of all.
_COPY_EVERY = 10


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


@dataclass(frozen=True)
class Ended:
    """A trial that just ended: ``result``, or ``reason`` where it failed or was stopped early."""

    number: int
    params: Params
    result: Result | None
    reason: str | None
    is_stopped: bool = False
    is_lost: bool = False


@dataclass(frozen=True)
class Planned:
    """A trial as it would be submitted.

    Attributes:
        script: for the scheduler; None where there is none.
    """

    suggestion: Suggestion
    tier: str | None
    script: str | None


class Interrupted(Exception):  # noqa: N818  # a request by the user, not an error
    """Ctrl-C or SIGTERM: nothing more was submitted.

    Attributes:
        is_cancelled: whether the jobs were cancelled; else what runs goes on running.
        jobs: that there were, a few words for each.
        signal: that has come; SIGINT also for ``carbs cancel``.
    """

    def __init__(
        self,
        is_cancelled: bool = False,
        jobs: Sequence[str] = (),
        signal: signal.Signals = signal.SIGINT,
    ) -> None:
        super().__init__(is_cancelled)
        self.is_cancelled = is_cancelled
        self.jobs = tuple(jobs)
        self.signal = signal


class Sweep:
    """A sweep in its folder. At most one controller at a time works on it.

    Args:
        config: what the sweep file says.
        folder: of the study, the jobs and the report; made where it does not exist.
        python_path: where the training function is imported from, besides the usual places.
        executor: in place of the one that the configuration names.
        notify: told of what the user should know while the sweep goes on.
        clock: Unix time.
        study: in place of the one that the configuration names.
        may_begin: whether to begin one where there is none.

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
        self._notify = notify
        try:
            for name in ("jobs", "shared", "checkpoints"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(
                f"cannot write the sweep's folder {self.folder} ({error.strerror}): "
                "name another with --folder"
            ) from None
        if not os.access(self.folder, os.W_OK):
            raise FolderError(f"cannot write into {self.folder}: name another with --folder")
        if study is None:
            may_begin = may_begin and not has_jobs(self.folder)
            study = open_sweep_study(config, self.folder, may_begin=may_begin)
        self.study = study
        if SPACE in self.study.user_attrs:
            self._compared()
        else:
            keep_earlier(config, self.space, self.folder)
            self._write_down()
        self._sampler = CarbsSampler(
            config.parameters,
            constraints=config.constraints,
            earlier=kept_earlier(config, self.folder),
            seed=config.seed,
        )
        self.study.sampler = self._sampler
        id = _sweep_id(self.folder)
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
        self.executor: Executor = self.jobs.executor
        self._in_flight: dict[int, Run] = {}
        self._locks = ExitStack()
        self._loggers: Loggers | None = None
        self._interrupts = 0
        self._n_lost_in_a_row = 0
        self._terminated = False
        self._n_ended_since_copy = 0
        self._declined: tuple[float, float, int] | None = None
        # A database of its own may have other controllers; a file in the folder has this one.
        is_shared = config.storage is not None or config.storage_file is not None
        self._refresh_s = _SHARED_REFRESH_S if is_shared else _REFRESH_S
        self._refreshed = float("-inf")
        self._changed: float | None = None
        self._told_of: set[tuple[str, str]] = set()

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

    def _write_config(self) -> None:
        # A URL with a password in it is kept nowhere; one with a variable in its place is.
        secret = self.config.storage is not None and has_password(self.config.storage)
        text = self.config.model_dump_json(
            indent=1, exclude={"warm_start", *(["storage"] if secret else [])}
        )
        (self.folder / CONFIG_FILE).write_text(text + "\n")

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
        self._notify("the sweep file has changed, what was run is kept:")
        for line in changed:
            self._notify(f"  {line}")
        for reason, n in left_out(kept_trials(self.study), self.space).items():
            self._notify(f"  {n} earlier runs cannot be read in the new space: {reason}")

    def _write_down(self) -> None:
        """What the sweep file says, in the study and the folder."""
        config, study = self.config, self.study
        space = json.dumps([param.model_dump(mode="json") for param in config.parameters])
        # The last two may change from run to run: what violates them is still data.
        for key, value in ((SPACE, space), (CONSTRAINTS, config.constraints), (COST, config.cost)):
            if key not in study.user_attrs or study.user_attrs[key] != value:
                study.set_user_attr(key, value)
        self._write_config()

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
        before, config = _last_config(self.folder), self.config
        if before is None:
            return []
        is_same = before.is_cost_seconds and config.is_cost_seconds
        if before.cost_unit != config.cost_unit and not is_same:
            raise FolderError(
                f"what was run in {self.folder} has its cost in {before.cost_unit}, and the sweep "
                f"file says cost_unit: {config.cost_unit}: name another --folder, or take that back"
            )
        return changes_of_runs(before, config)

    @contextmanager
    def controlling(self) -> Iterator[None]:
        """Be the one controller of this sweep; Ctrl-C and SIGTERM end the loop in an orderly way.

        Raises:
            FolderError: another controller is at work.
        """
        lock = _lock(self.folder, timeout_s=_LOOK_S)
        if lock is None:
            raise FolderError(
                f"another controller is running the sweep in {self.folder}: wait for it, or stop it"
            )

        def interrupt(number: int, _: Any) -> None:
            # No more than a note: a handler that took a lock could wait for what it interrupts.
            if number == signal.SIGTERM:
                self._terminated = True
            else:
                self._interrupts += 1

        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, interrupt) for number in handled}
        self._locks.callback(lock.release)
        (self.folder / _CANCEL).unlink(missing_ok=True)
        config = self.config
        loggers = Loggers(config.log, self.jobs.id, config.name, self.folder, self._notify)
        try:
            self.follow_file()
            if config.log:
                loggers.log(self._trial_runs({None, self.jobs.id}))
                self._loggers = loggers
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            loggers.close(self._summary)
            self._locks.close()

    def has_controller(self) -> bool | None:
        """Whether a controller is at work; None where its lock cannot be looked at."""
        try:
            lock = _lock(self.folder)
        except OSError:
            return None
        if lock is not None:
            lock.release()
        return lock is None

    def status(self) -> Status:
        """Read the study."""
        self.ledger.refresh()
        return self._status()

    def _status(self) -> Status:
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

    def run(
        self,
        on_change: Callable[[Status], None] = lambda status: None,
        on_end: Callable[[Ended], None] = lambda ended: None,
    ) -> Status:
        """Search until the trials or the budget are used up; call inside :meth:`controlling`.

        Args:
            on_change: called when a trial was started or has ended.
            on_end: called for each trial that ends.

        Raises:
            Interrupted: by Ctrl-C, or by ``carbs cancel``.
            SweepStoppedError: every trial so far has failed.
        """
        while (pause := self.tick(on_change, on_end)) is not None:
            time.sleep(pause)
        return self._status()

    def tick(
        self,
        on_change: Callable[[Status], None] = lambda status: None,
        on_end: Callable[[Ended], None] = lambda ended: None,
    ) -> float | None:
        """One round: collect what has ended, start what may start.

        Returns:
            Seconds to wait until the next; None once all is done.

        Raises:
            As :meth:`run`.
        """
        trouble = self.jobs.trouble
        self._keep_up_with_others()
        for run, ending in self.jobs.poll(list(self._in_flight.values())):
            number = int(run.key)
            del self._in_flight[number]
            self._n_lost_in_a_row = self._n_lost_in_a_row + 1 if isinstance(ending, Lost) else 0
            ended = self._tell(number, run, ending)
            self._log(number)
            on_end(ended)
            on_change(self._status())
        for number, run in self._in_flight.items():
            self._follow(number, run)
        self._raise_if_hopeless()
        self._heed_interrupts()
        pause = _POLL_S
        while runs := self._next_batch():
            self.jobs.submit(runs)
            pause = 0.0
            on_change(self._status())
            self._heed_interrupts()
            if any(self.jobs.has_report(run) for run in runs):
                break  # a job that ran inside the controller: see first what it has taught
        self._say_what_waits()
        if self.jobs.trouble != trouble:
            on_change(self._status())
        return pause if self._in_flight else None

    def collect(self) -> None:
        """Take the results of jobs that have finished; nothing is started."""
        self._adopt(self.ledger.refresh())
        runs = [run for run in self._in_flight.values() if self.jobs.has_result(run)]
        for run, ending in self.jobs.poll(runs):
            del self._in_flight[int(run.key)]
            self._tell(int(run.key), run, ending)

    def plan(self, n: int, folder: Path) -> list[Planned]:
        """The next trials, as they would be submitted; nothing is written or started.

        Args:
            n: how many, at the most.
            folder: in whose place this one stands.
        """
        self.ledger.refresh()
        account = self.ledger.account()
        known, number = account.records, self.ledger.next_number
        self.nodes.refresh()
        jobs = self.jobs.moved_to(folder.resolve())
        planned = []
        for i in range(min(n, self.config.max_trials - account.n_trials)):
            self._set_limits(account)
            suggestion = self._sampler.suggest(known, number + i, self.ledger.direction)
            known.pending.append(suggestion)  # of our own copy
            tier = self.config.tier(suggestion.params, suggestion.predicted_cost)
            key = f"{number + i:05d}"
            planned.append(Planned(suggestion, tier, jobs.script(key, tier)))
        return planned

    def run_one(self, params: Params, name: str) -> Result | BadConfiguration:
        """Run one configuration outside the search, such as a check run; resumes as trials do.

        Args:
            params: the configuration.
            name: of its folder among the jobs; asked again, the same name gives the same result.

        Raises:
            Interrupted: by Ctrl-C.
        """
        file = self._attempt_file(name)

        def save(attempt: Attempt) -> None:
            temporary = file.with_suffix(".tmp")
            temporary.write_text(attempt.model_dump_json())
            temporary.replace(file)

        tier = self.config.tier(params, None)
        attempt = self.jobs.first_attempt(name, tier)
        if file.exists():
            attempt = Attempt.model_validate_json(file.read_text())
        run = Run(name, params, self.config.seed, save, lambda past: None, attempt)
        while True:
            for _, ending in self.jobs.poll([run]):
                match ending:
                    case Completed(result=result):
                        return result
                    case StoppedRun(spent=spent):
                        return BadConfiguration("the run stopped itself, unasked", spent)
                    case Lost(reason=reason):
                        return BadConfiguration(reason)
                    case BadConfiguration():
                        return ending
            self._heed_interrupts([run])
            time.sleep(_POLL_S)

    def folder_of(self, name: str) -> Path | None:
        """The folder of what :meth:`run_one` has run last under a name; None where it has not."""
        file = self._attempt_file(name)
        if not file.exists():
            return None
        return self.folder / Attempt.model_validate_json(file.read_text()).folder

    def _attempt_file(self, name: str) -> Path:
        return self.folder / "jobs" / f"{name}.json"

    def cancel(self) -> int:
        """Cancel the sweep's jobs, also those that no controller knows of; and its controller.

        When the sweep is continued, its running trials start anew.

        Returns:
            How many jobs there were.

        Raises:
            FolderError: the controller does not end.
            SchedulerDownError: the scheduler does not answer.
        """
        lock = _lock(self.folder)
        if lock is None:
            (self.folder / _CANCEL).touch()
            lock = _lock(self.folder, timeout_s=60)
        if lock is None:
            raise FolderError(
                f"the controller of {self.folder} does not heed the request to end: stop it, then "
                "cancel again"
            )
        try:
            self._adopt(self.ledger.refresh())
            runs = list(self._in_flight.values())
            self.jobs.cancel(runs)
            n_jobs = len([run for run in runs if run.attempt.id is not None])
            if isinstance(self.executor, SlurmExecutor):
                n_jobs = max(n_jobs, len(self.executor.cancel_named(f"{self.jobs.id}-")))
            (self.folder / _CANCEL).unlink(missing_ok=True)
            return n_jobs
        finally:
            lock.release()

    def retry(self, number: int) -> str:
        """Try a trial again: one that runs on another machine, one that has ended as a new trial.

        Returns:
            What was done.

        Raises:
            FolderError: there is no such trial.
        """
        trial = self.trial(number)
        if trial.state == TrialState.RUNNING:
            self.executor.cancel(
                [self.jobs.handle(_attempt(trial))] if JOB in trial.user_attrs else []
            )
            return f"trial {number} is running: its job was cancelled, and is started anew"
        self._again([number])
        return f"trial {number} no longer counts; its configuration is tried again as a new trial"

    def retry_failed(self) -> int:
        """Try the configurations of all failed trials again, as new trials.

        Returns:
            How many there are.
        """
        dropped = set(self.study.user_attrs.get(DROPPED, ()))
        numbers = [
            trial.number
            for trial in self.study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
            if FORGOTTEN not in trial.user_attrs and trial.number not in dropped
        ]
        self._again(numbers)
        return len(numbers)

    def _again(self, numbers: Sequence[int]) -> None:
        """Enqueue the configurations of ended trials, which no longer count."""
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        enqueued = {trial.user_attrs.get(RETRY_OF) for trial in waiting}
        for number in numbers:
            params = unflatten(self.space, self.trial(number).params)
            if params is None:
                raise FolderError(
                    f"trial {number} cannot be tried again: it lacks parameters of the sweep file"
                )
            if number not in enqueued:  # by a command that did not come to its end
                self.study.enqueue_trial(flatten(params), user_attrs={RETRY_OF: number})
        self.ledger.drop(*numbers)
        self._copy_study()
        self._tell_controller()

    def drop(self, number: int) -> str:
        """Take a trial out: the search forgets it, and its job is cancelled.

        Returns:
            What was done.

        Raises:
            FolderError: there is no such trial.
        """
        trial = self.trial(number)
        self.ledger.drop(number)
        if trial.state == TrialState.RUNNING:
            if JOB in trial.user_attrs:
                self.executor.cancel([self.jobs.handle(_attempt(trial))])
            self.ledger.forget(number, "dropped by the user")
        self._keep(number)
        self._copy_study()
        self._tell_controller()
        return f"trial {number} is dropped: it teaches nothing and counts for nothing"

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

    def _tell_controller(self) -> None:
        """Make a controller at work read the study anew."""
        (self.folder / _CHANGED).write_text(uuid.uuid4().hex)

    def _keep_up_with_others(self) -> None:
        """Read the study anew at first, now and then, and when a command has changed it."""
        try:
            changed = (self.folder / _CHANGED).stat().st_mtime
        except FileNotFoundError:
            changed = None
        now = time.monotonic()
        if changed == self._changed and now - self._refreshed < self._refresh_s:
            return
        is_first = self._refreshed == float("-inf")
        self._changed, self._refreshed = changed, now
        running = self.ledger.refresh()
        self.nodes.refresh()
        numbers = {trial.number for trial in running}
        for number in [number for number in self._in_flight if number not in numbers]:
            self.jobs.give_up(self._in_flight.pop(number))
        self._adopt(running, is_first)

    def _adopt(self, running: list[FrozenTrial], is_first: bool = True) -> None:
        """Take on the running trials of this folder that no run here stands for."""
        for trial in running:
            owner = trial.user_attrs.get(OWNER)
            is_ours = owner == self.jobs.id or (owner is None and is_first)
            if trial.number in self._in_flight or not is_ours:
                continue
            if unflatten(self.space, trial.params) is None:
                # The controller died while it asked: there is nothing to run.
                self.ledger.forget(trial.number, "the controller died while asking")
                continue
            run = self._in_flight[trial.number] = self._run_of(trial)
            if run.is_stopped:
                self.jobs.stop(run)

    def _run_of(self, trial: FrozenTrial) -> Run:
        params = unflatten(self.space, trial.params)
        assert params is not None
        number, attributes = trial.number, trial.user_attrs
        predicted = attributes.get(PREDICTED, {}).get("predicted_cost")
        key = f"{number:05d}"
        if JOB in attributes:
            attempt = _attempt(trial)
        else:
            attempt = self.jobs.first_attempt(key, self.config.tier(params, predicted))

        def save(attempt: Attempt) -> None:
            self.ledger.set(number, JOB, attempt.model_dump(mode="json"))
            self._keep(number)

        return Run(
            key=key,
            params=params,
            seed=self.config.seed + number,
            save=save,
            save_past=lambda past: self.ledger.set(
                number, PAST, [attempt.model_dump(mode="json") for attempt in past]
            ),
            attempt=attempt,
            past=[PastAttempt.model_validate(past) for past in attributes.get(PAST, [])],
            is_stopped=STOPPED in attributes,
            curve=attributes.get(CURVE, []),
        )

    def _next_batch(self) -> list[Run]:
        """New trials that may start now: recorded, but not submitted."""
        account = self.ledger.account()
        left = self.config.max_trials - account.n_trials
        size = min(self.config.batch_size, left, self.config.max_in_flight)
        if len(self._in_flight) + size > self.config.max_in_flight:
            return []
        batch: list[Run] = []
        while len(batch) < size and (trial := self._ask(account)) is not None:
            run = self._run_of(trial)
            self._in_flight[trial.number] = run
            batch.append(run)
            account = self.ledger.account()
        return batch

    def _ask(self, account: Account) -> FrozenTrial | None:
        """A new trial that the rest of the budget can pay for; None where there is none now."""
        if self._declined == (account.spent, account.reserved, account.n_trials):
            return None
        budget = self.config.budget
        cheapest = account.cheapest
        if budget is not None and cheapest is not None and self._unreserved(account) < cheapest:
            return None
        claimed = self.ledger.claim(self._sampler, self._notify)
        if claimed is not None:
            return claimed
        suggestion = self._suggest(account)
        if suggestion is None:
            # Until something ends the answer would be the same.
            self._declined = (account.spent, account.reserved, account.n_trials)
            return None
        return self.ledger.begin(self._sampler, suggestion)

    def _suggest(self, account: Account) -> Suggestion | None:
        """A suggestion for which there is room: the sampler prefers those, but does not promise."""
        self._set_limits(account)
        number, cap = self.ledger.next_number, self.config.max_cost_in_flight
        room = math.inf if self.config.budget is None else self._unreserved(account)
        for _ in range(_N_SUGGESTIONS):
            suggestion = self._sampler.suggest(account.records, number, self.ledger.direction)
            cost = suggestion.predicted_cost or account.dearest or 0.0
            if cap is not None and account.reserved > 0 and account.reserved + cost > cap:
                return None
            if cost <= room:
                return suggestion
            self._sampler.max_cost = room * min(room / cost, _LOWERED)
        return None

    def _unreserved(self, account: Account) -> float:
        assert self.config.budget is not None
        return self.config.budget - account.spent - account.reserved

    def _set_limits(self, account: Account) -> None:
        config, observations = self.config, account.records.observations
        allowance = Allowance(config.max_trials, config.budget)
        used = account.spent + account.reserved
        self._sampler.max_cost = allowance.most(config.max_cost, used, account.cheapest)
        first = observations[0].cost if observations else None
        self._sampler.cost_exponent = allowance.cost_exponent(
            account.n_trials, used, first, config.max_cost
        )

    def _follow(self, number: int, run: Run) -> None:
        """Write down what is new in the job's learning curve; stop the job if that is hopeless."""
        if not self._keep_curve(number, run):
            return
        self._log(number)
        early = self.config.early_stopping
        if early is not None and not run.is_stopped and run.curve[-1][0] < 1:
            pruner = FrontPruner(miss_share=early.miss_share, min_progress=early.min_progress)
            trial = self.ledger.read(number)
            if pruner.prune(self.study, trial):
                self.jobs.stop(run)

    def _keep_curve(self, number: int, run: Run) -> bool:
        """Whether there was anything new to write down."""
        if run.curve == run.kept_curve:
            return False
        self.ledger.set(number, CURVE, run.curve)
        run.kept_curve = run.curve
        return True

    def _keep(self, number: int) -> None:
        """Write down beside the jobs what the study has of a trial."""
        with suppress(OSError):  # the study has it
            keep_trial(self.folder, self.ledger.read(number))

    def _copy_study(self) -> None:
        """Keep a copy of an SQLite study beside it."""
        config = self.config
        url = database_url(config.storage, config.storage_file)
        database = database_file(self.folder, url)
        self._n_ended_since_copy = 0
        if database is None:
            return
        try:
            copy_database(database)
        except (OSError, sqlite3.Error) as error:
            self._notify(f"warning: no copy of {database} could be made: {error}")

    def _tell(self, number: int, run: Run, ending: Ending) -> Ended:
        """End a trial in the study."""
        ended = self._told(number, run, ending)
        self._keep(number)
        self._n_ended_since_copy += 1
        if self._n_ended_since_copy >= max(_COPY_EVERY, self.ledger.next_number // 20):
            self._copy_study()
        return ended

    def _told(self, number: int, run: Run, ending: Ending) -> Ended:
        self._follow(number, run)
        if run.evidence is not None:
            self.ledger.set(number, EVIDENCE, run.evidence.model_dump(mode="json"))
        match ending:
            case Completed(result=result):
                cost, speeds = self.nodes.normalised(self.jobs.start(run), result.cost)
                if speeds is not None:
                    self.ledger.set(number, SPEED, speeds)
                self.ledger.complete(number, result.output, cost, result.cost, result.metrics)
                self._say_changed_data(number, data_versions(result.metrics))
                return Ended(number, run.params, result, None)
            case StoppedRun(spent=spent) if run.is_stopped:
                forecast = self.ledger.read(number).user_attrs[STOPPED]["output"]
                self.ledger.stop(number, spent)
                reason = f"forecast {forecast:.4f}, spent {spent:.3f}"
                return Ended(number, run.params, None, reason, is_stopped=True)
            case StoppedRun(spent=spent):
                reason = "the run stopped itself, unasked"
                self.ledger.fail(number, reason, spent)
                return Ended(number, run.params, None, reason)
            case BadConfiguration(reason=reason, cost=cost):
                self.ledger.fail(number, reason, cost)
                return Ended(number, run.params, None, reason)
            case Lost(reason=reason):
                self.ledger.forget(number, reason)
                return Ended(number, run.params, None, reason, is_lost=True)

    def _log(self, number: int) -> None:
        """Have the loggers write what is new of a trial."""
        if self._loggers is not None:
            self._loggers.log([TrialRun.of(self.ledger.read(number), self.space)])

    def _say_changed_data(self, number: int, versions: dict[str, str]) -> None:
        """Whether a run's data were others than those of the runs before it."""
        before = dict(self.study.user_attrs.get(DATA, {})) if versions else {}
        for line in changed_data(before, versions):
            self._notify(f"warning: trial {number}: {line}")
        if before | versions != before:
            self.study.set_user_attr(DATA, before | versions)

    def _trial_runs(self, owners: set[str | None] | None = None) -> list[TrialRun]:
        """The trials, for the loggers; those of other controllers too by default."""
        found = [
            TrialRun.of(trial, self.space)
            for trial in kept_trials(self.study)
            if owners is None or trial.user_attrs.get(OWNER) in owners
        ]
        return [run for run in found if run is not None]

    def _summary(self) -> Summary:
        """What there is to tell, for the loggers."""
        check = self.folder / "check.json"
        told = {
            "name",
            "function",
            "command",
            "parameters",
            "constraints",
            "direction",
            "output_unit",
        }
        told |= {"max_trials", "max_cost", "budget", "cost_unit", "output_unit", "seed"}
        return Summary.of(
            [run for run in self._trial_runs() if run.has_ended],
            self.ledger.direction,
            self.config.model_dump(mode="json", include=told),
            json.loads(check.read_text()) if check.exists() else None,
            self.folder / "report.html",
        )

    def _raise_if_hopeless(self) -> None:
        account = self.ledger.account()
        failures, forgotten = account.records.failures, self.ledger.forgotten
        logs = f"  The logs are in {self.folder / 'jobs'}."
        if self._n_lost_in_a_row >= _HOPELESS_FAILURES:
            raise SweepStoppedError(
                f"the last {self._n_lost_in_a_row} trials were all spoilt by machines or by what "
                f"is set up there, the last: {forgotten[max(forgotten)]}\n{logs} Mend the cause, "
                "then start the sweep again."
            )
        if len(failures) >= _HOPELESS_FAILURES and not account.records.observations:
            raise SweepStoppedError(
                f"all of the first {len(failures)} trials failed, the last with: "
                f"{failures[-1].reason}\n{logs} Mend the cause, then start the sweep again with "
                "--retry-failed; or move the search_center to what can be trained."
            )

    def _heed_interrupts(self, others: Sequence[Run] = ()) -> None:
        """Leave off if the user wishes so: once, and jobs go on; twice, and they are cancelled."""
        runs = [*self._in_flight.values(), *others]
        is_cancelled = (self.folder / _CANCEL).exists()
        if not self._interrupts and not self._terminated and not is_cancelled:
            return
        if runs and not is_cancelled and not self._terminated:
            self._notify("interrupted; once more within two seconds cancels the running jobs")
            last = time.monotonic() + _SECOND_CTRL_C_S
            while self._interrupts < 2 and not self._terminated and time.monotonic() < last:
                time.sleep(0.02)
        if is_cancelled or self._interrupts > 1:
            self.jobs.cancel(runs)
            is_cancelled = True
        by = signal.SIGTERM if self._terminated else signal.SIGINT
        raise Interrupted(is_cancelled, [self._named(run) for run in runs], by)

    def _named(self, run: Run) -> str:
        name = f"trial {int(run.key)}" if run.key.isdigit() else f"the {run.key} run"
        return f"{name}: {'not submitted' if run.attempt.id is None else f'job {run.attempt.id}'}"

    def _say_what_waits(self) -> None:
        """Tell once of each job that will not start by itself."""
        for run in self._in_flight.values():
            state = run.state
            if state is None or not state.advice:
                continue
            if (run.key, state.advice) not in self._told_of:
                self._told_of.add((run.key, state.advice))
                self._notify(f"{self._named(run)} does not start ({state.reason}): {state.advice}")


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
    last = _last_config(folder)
    if last is not None and last.name != config.name:
        raise FolderError(
            f"{folder} holds the study {last.name!r}, and the sweep file's name is "
            f"{config.name!r}: name another --folder, or go on with name: {last.name}"
        )
    url = database_url(config.storage, config.storage_file)
    has_begun = (folder / CONFIG_FILE).exists()
    # What has begun had its database: if that does not answer, it may be starting again.
    patience_s = _OPENING_PATIENCE_S if has_begun and url is not None else 0.0
    study = open_study(config.name, folder, url, config.direction, patience_s, may_begin=may_begin)
    directions = [direction.name.lower() for direction in study.directions]
    if directions[0] != config.direction:
        raise FolderError(
            f"study {config.name!r} in {folder} is to {directions[0]} its output, and the "
            f"sweep file says {config.direction}: name another --folder, or change direction"
        )
    return study


def recover_study(folder: Path, storage: str | None = None) -> Recovered:
    """Make the study of the sweep in a folder anew from what else is there.

    Raises:
        FolderError: there is no sweep, a controller is at work, or the study can be read.
    """
    folder = folder.resolve()
    config = read_config(folder)
    if storage is not None:
        config = config.model_copy(update={"storage": storage, "storage_file": None})
    lock = _lock(folder)
    if lock is None:
        raise FolderError(f"a controller is running the sweep in {folder}: stop it first")
    try:
        recovered = recover(config, folder)
        sweep = Sweep(config, folder)
        sweep.collect()
        sweep._copy_study()
    finally:
        lock.release()
    return recovered


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


def _last_config(folder: Path) -> SweepConfig | None:
    """As :func:`read_config`; None where there is no sweep, or one of another release."""
    with suppress(FolderError, ValueError):
        return read_config(folder)
    return None


def _attempt(trial: FrozenTrial) -> Attempt:
    return Attempt.model_validate(trial.user_attrs[JOB])


def _sweep_id(folder: Path) -> str:
    """What tells the sweep's jobs from all others, also from those of a folder of the same name."""
    file = folder / _ID
    if not file.exists():
        draft = folder / f"{_ID}.{uuid.uuid4().hex}"
        name = re.sub(r"[^\w.-]+", "-", folder.name)[:40]
        draft.write_text(f"{name}-{uuid.uuid4().hex[:8]}")
        draft.replace(file)
    return file.read_text()


def _lock(folder: Path, timeout_s: float = 0) -> FileLock | None:
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=timeout_s)
    except Timeout:
        return None
    return lock
