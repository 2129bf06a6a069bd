"""The control loop: ask, submit, poll, tell.

The study and the job folders hold all that matters; what the loop keeps in memory it can read from
them again. So a controller may die at any moment: the next one finds the running trials, looks for
their reports, re-attaches to jobs that are alive and resubmits those that are lost.

A trial goes through these steps, each written down before the next is taken:

    asked                 RUNNING, with its parameters
    attribute ``job``     the attempt and its folder
    ``job.json``          what the job has to do; then it is submitted
    ``curve.jsonl``       where the function reports its progress
    attribute ``stopped`` if it is to be stopped early, the forecast of its end; then ``stop.json``
    ``report.json``       written by the job, in one step
    told                  COMPLETE, PRUNED or FAIL, after its curve and metrics
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from carbs.earlier import EarlierSweep
from carbs.records import Suggestion
from carbs.space import Param, Params, SearchSpace
from carbs.study import (
    CURVE,
    STOPPED,
    CarbsSampler,
    FrontPruner,
    Records,
    create_study,
    earlier_sweep,
    records,
    set_attribute,
    tell_failure,
    tell_forgotten,
    tell_stopped,
    unflatten,
)
from launchers.config import SweepConfig, WarmStartConfig
from launchers.errors import FolderError, SweepStoppedError
from launchers.executors import Executor, make_executor
from launchers.job import JobFile, Result, read_curve, read_report, stop, write_job
from launchers.outcomes import (
    BadConfiguration,
    BadMachine,
    Completed,
    Running,
    StoppedRun,
    classify,
)

JOB = "job"
METRICS = "metrics"
SPACE = "space"
CONSTRAINTS = "constraints"

_CONFIG = "sweep.json"
_EARLIER = "earlier.json"
_SWEEPS = TypeAdapter(list[EarlierSweep])
_PARAMS = TypeAdapter(list[Param])
_POLL_S = 0.05
_LOCK_TIMEOUT_S = 60
# When this many trials have failed and none has finished, something is wrong with all of them.
_HOPELESS_FAILURES = 5


@dataclass(frozen=True)
class Status:
    """A sweep at one moment.

    Attributes:
        spent: cost of everything that ended, failures and stopped runs included.
        reserved: predicted cost of what is running.
        last: the newest suggestion.
    """

    config: SweepConfig
    records: Records
    spent: float
    reserved: float
    last: Suggestion | None


@dataclass(frozen=True)
class Ended:
    """A trial that just ended: ``result``, or ``reason`` where it failed or was stopped early."""

    number: int
    params: Params
    result: Result | None
    reason: str | None
    is_stopped: bool = False


class Interrupted(Exception):  # noqa: N818  # a request by the user, not an error
    """Ctrl-C: nothing more was submitted; what runs goes on running."""


class Sweep:
    """A sweep in its folder. At most one controller at a time works on it.

    Args:
        config: what the sweep file says.
        folder: of the study, the jobs and the report; made where it does not exist.
        python_path: where the training function is imported from, besides the usual places.

    Raises:
        FolderError: the folder cannot be written, or holds a sweep over other parameters.
    """

    def __init__(
        self, config: SweepConfig, folder: Path, python_path: tuple[str, ...] = ()
    ) -> None:
        self.config = config
        self.folder = folder.resolve()
        self.space = SearchSpace(config.parameters, config.constraints)
        self._python_path = python_path
        try:
            (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
            (self.folder / "shared").mkdir(exist_ok=True)
        except OSError as error:
            raise FolderError(
                f"cannot write the sweep's folder {self.folder} ({error.strerror}): "
                "name another with --folder"
            ) from None
        if not os.access(self.folder, os.W_OK):
            raise FolderError(f"cannot write into {self.folder}: name another with --folder")
        self.study = self._open_study()
        # Without the storages: their URLs may hold passwords.
        text = config.model_dump_json(indent=1, exclude={"storage", "warm_start"})
        (self.folder / _CONFIG).write_text(text + "\n")
        self._sampler = CarbsSampler(
            config.parameters,
            constraints=config.constraints,
            earlier=self._earlier(),
            seed=config.seed,
        )
        self.study.sampler = self._sampler
        self._executor: Executor = make_executor(config)
        self._interrupted = False

    @classmethod
    def open(cls, folder: Path, storage: str | None = None) -> Sweep:
        """The sweep in a folder, as it was last configured.

        Raises:
            FolderError: the folder holds no sweep.
        """
        try:
            config = SweepConfig.model_validate_json((folder / _CONFIG).read_text())
        except FileNotFoundError:
            raise FolderError(
                f"{folder} holds no sweep ({_CONFIG} is missing): name the --folder of a sweep"
            ) from None
        return cls(config.model_copy(update={"storage": storage}), folder)

    def _open_study(self) -> Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        url = self.config.storage or f"sqlite:///{self.folder / 'study.db'}"
        try:
            storage = self.config.storage or _sqlite_storage(self.folder / "study.db")
            study = create_study(self.config.name, storage, self.config.direction)
        except (SQLAlchemyError, StorageInternalError) as error:
            cause = error.__cause__ or error
            raise FolderError(
                f"cannot open the study {self.config.name!r} in {_without_password(url)} "
                f"({type(cause).__name__}: {getattr(cause, 'orig', None)}): check the storage "
                "URL, or name another --folder"
            ) from None
        params = self.config.parameters
        before = study.user_attrs.get(SPACE)
        if before is not None and _PARAMS.validate_json(before) != params:
            raise FolderError(
                f"study {self.config.name!r} in {self.folder} searches other parameters than the "
                "sweep file: name another --folder, or take back the change to the parameters"
            )
        if before is None:
            self._keep_earlier()
            space = json.dumps([param.model_dump(mode="json") for param in params])
            study.set_user_attr(SPACE, space)
        # These may change from run to run: what violates them is still data.
        study.set_user_attr(CONSTRAINTS, self.config.constraints)
        return study

    def _keep_earlier(self) -> None:
        """Copy what earlier sweeps recorded, so that later controllers need only this folder."""
        earlier = [_read_earlier(source) for source in self.config.warm_start]
        try:
            for sweep in earlier:
                sweep.seen_from(self.space, self.config.direction)
        except ValueError as error:
            raise FolderError(f"warm_start of {self.config.name!r}: {error}") from None
        if earlier:
            file = self.folder / _EARLIER
            temporary = file.with_suffix(".tmp")
            temporary.write_bytes(_SWEEPS.dump_json(earlier))
            temporary.replace(file)

    def _earlier(self) -> list[EarlierSweep]:
        file = self.folder / _EARLIER
        if file.exists():
            return _SWEEPS.validate_json(file.read_bytes())
        if self.config.warm_start:
            raise FolderError(
                f"study {self.config.name!r} in {self.folder} was begun without warm_start: name "
                "another --folder, or take warm_start back"
            )
        return []

    @contextmanager
    def controlling(self) -> Iterator[None]:
        """Be the one controller of this sweep; Ctrl-C ends the loop in an orderly way.

        Raises:
            FolderError: another controller is at work.
        """
        lock = FileLock(self.folder / "controller.lock", blocking=False)
        try:
            lock.acquire()
        except Timeout:
            raise FolderError(
                f"another controller is running the sweep in {self.folder}: wait for it, or stop it"
            ) from None

        def interrupt(*_: Any) -> None:
            # No more than a flag: a handler that took a lock could wait for the loop it interrupts.
            self._interrupted = True

        before = signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            lock.release()

    def status(self) -> Status:
        """Read the study."""
        known = records(self.study.get_trials(deepcopy=False), self.space)
        spent = sum(o.cost if o.spent is None else o.spent for o in known.observations)
        spent += sum(failure.cost or 0.0 for failure in known.failures)
        # Without a prediction (the first few), a run is taken to cost what the dearest one did.
        dearest = max((observation.cost for observation in known.observations), default=0.0)
        reserved = sum(s.predicted_cost or dearest for s in known.pending)
        last = known.pending[-1] if known.pending else None
        return Status(self.config, known, spent, reserved, last)

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
            Interrupted: by Ctrl-C.
            SweepStoppedError: every trial so far has failed.
        """
        in_flight = self._resume()
        status = self.status()
        while True:
            for trial in list(in_flight.values()):
                still = self._poll(trial, on_end)
                if still is None:
                    del in_flight[trial.number]
                    status = self.status()
                    on_change(status)
                else:
                    in_flight[trial.number] = still
            self._raise_if_hopeless(status)
            if self._interrupted:
                raise Interrupted
            if self._may_start(status, len(in_flight)):
                trial = self._ask(status)
                in_flight[trial.number] = self._submit(trial, attempt=1)
                status = self.status()
                on_change(status)
            elif not in_flight:
                return status
            else:
                time.sleep(_POLL_S)

    def run_one(self, params: Params, name: str) -> Result | BadConfiguration:
        """Run one configuration outside the search, such as a check run; resumes as trials do.

        Args:
            params: the configuration.
            name: of its folder among the jobs; asked again, the same name gives the same result.

        Raises:
            Interrupted: by Ctrl-C.
        """
        attempt = 1
        while (self.folder / "jobs" / f"{name}-{attempt + 1}").exists():
            attempt += 1
        folder = self.folder / "jobs" / f"{name}-{attempt}"
        if not (folder / "job.json").exists():
            self._start(folder, params, self.config.seed)
        while True:
            is_alive = self._executor.is_alive(folder)
            match classify(read_report(folder), is_alive, attempt):
                case Completed(result=result):
                    return result
                case BadConfiguration() as failure:
                    return failure
                case StoppedRun(spent=spent):
                    return BadConfiguration("the run stopped itself, unasked", spent)
                case BadMachine():
                    attempt += 1
                    folder = self.folder / "jobs" / f"{name}-{attempt}"
                    self._start(folder, params, self.config.seed)
            if self._interrupted:
                raise Interrupted
            time.sleep(_POLL_S)

    def _resume(self) -> dict[int, FrozenTrial]:
        """Running trials of an earlier controller, each with a job."""
        in_flight = {}
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if unflatten(self.space, trial.params) is None:
                # The controller died while it asked: there is nothing to run.
                tell_forgotten(self.study, trial.number, "the controller died while asking")
            elif JOB not in trial.user_attrs:
                in_flight[trial.number] = self._submit(trial, attempt=1)
            else:
                in_flight[trial.number] = trial
        return in_flight

    def _may_start(self, status: Status, n_in_flight: int) -> bool:
        known = status.records
        n_trials = len(known.observations) + len(known.failures) + len(known.pending)
        if n_in_flight >= self.config.max_in_flight or n_trials >= self.config.max_trials:
            return False
        if self.config.budget is None or not known.observations:
            return True
        cheapest = min(observation.cost for observation in known.observations)
        return self._unreserved(status) >= cheapest

    def _unreserved(self, status: Status) -> float:
        assert self.config.budget is not None
        return self.config.budget - status.spent - status.reserved

    def _ask(self, status: Status) -> FrozenTrial:
        """A new trial that the rest of the budget can pay for."""
        limits = [self.config.max_cost]
        if self.config.budget is not None:
            limits.append(self._unreserved(status))
        limit = min((limit for limit in limits if limit is not None), default=None)
        self._sampler.max_cost = limit
        self._sampler.cost_exponent = self._cost_exponent(status)
        self.study.sampler = self._sampler
        number = self.study.ask().number
        return self.study.get_trials(deepcopy=False)[number]

    def _cost_exponent(self, status: Status) -> float | None:
        """How much cost counts: the less, the more the budget has left for each trial.

        Trials spread evenly over the logarithm of cost, from the centre's to the limit, would cost
        ``(high - low) / log(high / low)`` on average. Where the budget pays for that, the number of
        trials is what is scarce.
        """
        known, config = status.records, self.config
        if config.budget is None or config.max_cost is None or not known.observations:
            return None
        low, high = known.observations[0].cost, config.max_cost
        if low >= high:
            return None
        n_known = len(known.observations) + len(known.failures) + len(known.pending)
        affordable = self._unreserved(status) / max(config.max_trials - n_known, 1)
        return float(np.clip(1 - affordable * np.log(high / low) / (high - low), 0.0, 1.0))

    def _submit(self, trial: FrozenTrial, attempt: int) -> FrozenTrial:
        """Write down the attempt, then start it."""
        name = f"{trial.number:05d}-{attempt}"
        attribute = {"attempt": attempt, "folder": f"jobs/{name}", "id": None}
        set_attribute(self.study, trial.number, JOB, attribute)
        params = unflatten(self.space, trial.params)
        assert params is not None
        job_id = self._start(self.folder / "jobs" / name, params, self.config.seed + trial.number)
        set_attribute(self.study, trial.number, JOB, {**attribute, "id": job_id})
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _start(self, folder: Path, params: Params, seed: int) -> str:
        write_job(
            folder,
            JobFile(
                function=self.config.function,
                python_path=list(self._python_path),
                params=params,
                seed=seed,
                settings=self.config.settings,
                shared_folder=self.folder / "shared",
            ),
        )
        return self._executor.submit(folder)

    def _job_folder(self, trial: FrozenTrial) -> Path:
        return self.folder / str(trial.user_attrs[JOB]["folder"])

    def _poll(self, trial: FrozenTrial, on_end: Callable[[Ended], None]) -> FrozenTrial | None:
        """The trial where it goes on, perhaps as a new attempt; None where it has ended."""
        folder = self._job_folder(trial)
        attempt = trial.user_attrs[JOB]["attempt"]
        is_alive = self._executor.is_alive(folder)
        report = read_report(folder)
        if report is None and not is_alive and trial.user_attrs[JOB]["id"] is None:
            # The controller died before it submitted this attempt.
            return self._submit(trial, attempt)
        params = unflatten(self.space, trial.params)
        assert params is not None
        trial = self._follow(trial, folder)
        match classify(report, is_alive, attempt):
            case Running():
                return trial
            case BadMachine():
                return self._submit(trial, attempt + 1)
            case StoppedRun(spent=spent) if STOPPED in trial.user_attrs:
                tell_stopped(self.study, trial.number, spent)
                reason = f"forecast {trial.user_attrs[STOPPED]['output']:.4f}, spent {spent:.3f}"
                on_end(Ended(trial.number, params, None, reason, is_stopped=True))
            case StoppedRun(spent=spent):
                reason = "the run stopped itself, unasked"
                tell_failure(self.study, trial.number, reason, spent)
                on_end(Ended(trial.number, params, None, reason))
            case BadConfiguration(reason=reason, cost=cost):
                tell_failure(self.study, trial.number, reason, cost)
                on_end(Ended(trial.number, params, None, reason))
            case Completed(result=result):
                set_attribute(self.study, trial.number, METRICS, result.metrics)
                self.study.tell(trial.number, [result.output, result.cost])
                on_end(Ended(trial.number, params, result, None))
        return None

    def _follow(self, trial: FrozenTrial, folder: Path) -> FrozenTrial:
        """Write down what is new in the job's learning curve; stop the job if that is hopeless."""
        curve = [[point.progress, point.output, point.cost] for point in read_curve(folder)]
        if curve == trial.user_attrs.get(CURVE, []):
            return trial
        set_attribute(self.study, trial.number, CURVE, curve)
        trial = self.study.get_trials(deepcopy=False)[trial.number]
        early = self.config.early_stopping
        if early is not None:
            pruner = FrontPruner(miss_share=early.miss_share, min_progress=early.min_progress)
            if pruner.prune(self.study, trial):
                stop(folder)
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _raise_if_hopeless(self, status: Status) -> None:
        failures = status.records.failures
        if not status.records.observations and len(failures) >= _HOPELESS_FAILURES:
            raise SweepStoppedError(
                f"all of the first {len(failures)} trials failed, the last with: "
                f"{failures[-1].reason}\n  The logs are in {self.folder / 'jobs'}. Mend the cause "
                "and start in a new folder, or move the search_center to what can be trained."
            )


def _sqlite_storage(file: Path) -> RDBStorage:
    """A study's file, which waits for its lock as long as a slow disk may need.

    Optuna makes its tables one by one, and a controller may be killed between two of them: so a
    new file is made aside and put in place whole.
    """
    if not file.exists():
        with TemporaryDirectory(dir=file.parent) as folder:
            new = Path(folder) / file.name
            RDBStorage(f"sqlite:///{new}").engine.dispose()
            # Another controller may have been first.
            with suppress(FileExistsError):
                os.link(new, file)
    return RDBStorage(f"sqlite:///{file}", {"connect_args": {"timeout": _LOCK_TIMEOUT_S}})


def _read_earlier(source: WarmStartConfig) -> EarlierSweep:
    """The records that an entry of ``warm_start`` names.

    Raises:
        FolderError: there are none, or they cannot be read.
    """
    name, url = source.study, source.storage
    if source.folder is not None:
        folder = Path(source.folder).expanduser().resolve()
        try:
            config = SweepConfig.model_validate_json((folder / _CONFIG).read_text())
        except (OSError, ValueError) as error:
            raise FolderError(f"warm_start: {folder} holds no sweep: {error}") from None
        name, url = config.name, f"sqlite:///{folder / 'study.db'}"
    assert url is not None
    where = f"warm_start: study {name!r} in {_without_password(url)}"
    try:
        database = make_url(url)
        if database.get_backend_name() == "sqlite" and not Path(database.database or "").is_file():
            raise FolderError(f"{where}: there is no such file")  # Optuna would make it
        study = optuna.load_study(study_name=name, storage=url)
        return earlier_sweep(study, source.defaults)
    except KeyError:
        raise FolderError(f"{where}: there is no study of that name") from None
    except (SQLAlchemyError, StorageInternalError, ValueError, ImportError) as error:
        cause = error.__cause__ or error
        reason = getattr(cause, "orig", None) or (cause if isinstance(cause, ValueError) else None)
        raise FolderError(f"{where} cannot be read ({type(cause).__name__}: {reason})") from None


def _without_password(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "its database, whose URL cannot be read"
