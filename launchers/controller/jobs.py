"""One configuration after the other through its attempts: submit, watch, judge, try again.

Nothing here knows the study: what must outlive the controller is handed to :attr:`Run.save`, before
and after each submission.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from pathlib import Path

from carbs.launchers.cluster.executors import (
    Executor,
    Handle,
    JobState,
    Submission,
    log_files,
    read_log,
)
from carbs.launchers.cluster.options import n_gpus, n_tasks
from carbs.launchers.controller.attempts import Attempt, Ending, Lost, PastAttempt, Run
from carbs.launchers.controller.config import SweepConfig
from carbs.launchers.controller.outcomes import (
    PATTERNS,
    BadConfiguration,
    BadMachine,
    OutOfTime,
    classify,
)
from carbs.launchers.errors import SchedulerDownError
from carbs.launchers.job.files import (
    Failed,
    Finished,
    JobFile,
    JobReport,
    Start,
    Stopped,
    has_begun,
    mark_cancelled,
    read_curve,
    read_report,
    read_start,
    run_folder,
    stop,
    write_job,
)
from carbs.launchers.job.process import checkpoint_progress
from carbs.launchers.job.protocol import CURVE, CurvePoint

_FOLDER_GONE = BadMachine("its job's folder is gone", blames_node=False)
_MAX_TAIL = 4000  # characters of a log that are kept with the trial


class Jobs:
    """The jobs of a sweep.

    Args:
        config: says how jobs are run and what their ends mean.
        folder: of the sweep.
        id: of the sweep, with which the names of its jobs begin.
        python_path: where the training function is imported from, besides the usual places.
        executor: where they run.
        excluded_nodes: asked for the nodes that the sweep keeps away from at the moment.
        on_bad_node: told of a node and what is wrong with it.
        clock: Unix time.
    """

    def __init__(
        self,
        config: SweepConfig,
        folder: Path,
        id: str,
        python_path: Sequence[str],
        executor: Executor,
        excluded_nodes: Callable[[], Sequence[str]],
        on_bad_node: Callable[[str, str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._folder = folder
        self.id = id
        self._python_path = python_path
        self.executor = executor
        self._excluded_nodes = excluded_nodes
        self._on_bad_node = on_bad_node
        self._clock = clock
        self._patterns = (*config.outcomes, *PATTERNS)
        self._last_poll = float("-inf")
        self.trouble: str | None = None
        """What the scheduler's silence looks like; None while it answers."""

    def first_attempt(self, key: str, tier: str | None) -> Attempt:
        """Where the attempts at a run begin: in a folder that no other trial's job has used.

        There are such where a study is older than its jobs' folders, as its copy may be.
        """
        number = 1
        while read_report(self._folder / f"jobs/{key}-{number}") is not None:
            number += 1
        folder = f"jobs/{key}-{number}"
        return Attempt(attempt=number, folder=folder, logs=folder, tier=tier)

    def submit(self, runs: Sequence[Run]) -> None:
        """Submit runs that were not; those that share their options as one job array.

        What the scheduler does not take now is submitted by a later :meth:`poll`.
        """
        for group in _groups(runs):
            name = self._name(Path(group[0].attempt.folder).name, len(group))
            for element, run in enumerate(group):
                logs = run.attempt.folder if len(group) == 1 else f"jobs/{name}"
                attempt = run.attempt.model_copy(
                    update={
                        "name": name,
                        "logs": logs,
                        "element": element,
                        "n_elements": len(group),
                        "submitted": self._clock(),
                        "progress": checkpoint_progress(self._checkpoints(run)),
                    }
                )
                self._write_job(run, attempt)
                self._save(run, attempt)
            self._try_submit(group)

    def _try_submit(self, group: Sequence[Run]) -> None:
        try:
            ids = self.executor.submit(self._submission(group))
        except SchedulerDownError as error:
            self.trouble = str(error)
            return
        self.trouble = None
        for run, job_id in zip(group, ids, strict=True):
            run.state = None
            self._save(run, run.attempt.model_copy(update={"id": job_id}))

    def poll(self, runs: Sequence[Run]) -> Iterator[tuple[Run, Ending]]:
        """Look after runs: yields those that have ended, and sees to all others.

        Result files are looked at each time, the scheduler is asked no more often than it likes.
        """
        is_due = self._clock() - self._last_poll >= self.executor.poll_s
        if is_due:
            self._ask(runs)
        takes_jobs = is_due
        for run in runs:
            report, is_late = self._read_report(run)
            if report is None and run.attempt.is_cancelled:
                self._retry(run, "cancelled by the user", run.attempt.faults)
                continue
            if report is None and run.attempt.id is None:
                takes_jobs = takes_jobs and self._find_or_submit(run)
                continue
            self._read_curve(run)
            if report is None and not (self._folder / run.attempt.folder).exists():
                # Somebody has tidied up: nothing that the job does can be found out any more.
                ending = self._after_fault(run, _FOLDER_GONE, made_progress=False)
                if ending is not None:
                    yield run, ending
                continue
            if report is None and not (is_due and self._is_gone(run)):
                continue
            ending = self._judge(run, report)
            if ending is not None:
                # What was taken for lost was not dead after all: its copy need not go on.
                if is_late or (report is not None and self._has_newer_copy(run, report)):
                    self._cancel([run])
                shutil.rmtree(self._checkpoints(run), ignore_errors=True)
                yield run, ending

    def _ask(self, runs: Sequence[Run]) -> None:
        self._last_poll = self._clock()
        submitted = [run for run in runs if run.attempt.id is not None]
        if not submitted:
            return
        states = self.executor.states([self.handle(run.attempt) for run in submitted])
        for run, state in zip(submitted, states, strict=True):
            run.state = state
        if any(state.is_alive is None for state in states):
            self.trouble = "the scheduler does not answer"
        else:
            self.trouble = None

    def _find_or_submit(self, run: Run) -> bool:
        """A controller has died between sbatch and its record, or sbatch has failed.

        Returns:
            Whether the scheduler answers.
        """
        if not run.attempt.name:
            self.submit([run])
            return run.attempt.id is not None
        submission = self._submission([run] * run.attempt.n_elements)
        try:
            found = self.executor.find(submission)
        except SchedulerDownError as error:
            self.trouble = str(error)
            return False
        if not found:
            self.submit([run])
            return run.attempt.id is not None
        job_id = found[0]
        if run.attempt.n_elements > 1:
            job_id = f"{job_id.split('_')[0]}_{run.attempt.element}"
        self._save(run, run.attempt.model_copy(update={"id": job_id}))
        return True

    def _is_gone(self, run: Run) -> bool:
        """Whether a run without a report has been neither queued nor running for long enough."""
        if run.state is None or run.state.is_alive is None:
            return False
        if run.state.is_alive:
            run.gone_since, run.seen = None, self._clock()
            return False
        if run.gone_since is None:
            run.gone_since = self._clock()
        return self._clock() - run.gone_since >= self.executor.grace_s

    def _read_report(self, run: Run) -> tuple[JobReport | None, bool]:
        """A run's report, and whether it is of an attempt that was taken for lost."""
        for past in run.past:
            report = read_report(self._folder / f"jobs/{run.key}-{past.attempt}")
            if isinstance(report, Finished | Stopped):
                return report, True
        return read_report(self._folder / run.attempt.folder), False

    def _has_newer_copy(self, run: Run, report: JobReport) -> bool:
        """Whether Slurm has requeued the job, and it was the one before that has reported."""
        start = self.start(run)
        return start is not None and start.restart > report.restart

    def _judge(self, run: Run, report: JobReport | None) -> Ending | None:
        """How a run has ended; None where it goes on as a new attempt."""
        evidence = ""
        if report is None and run.state is not None:
            evidence = f"{run.state.state}\n{read_log(self.handle(run.attempt))}"
        progress = checkpoint_progress(self._checkpoints(run))
        made_progress = progress > run.attempt.progress
        outcome = classify(
            report,
            run.attempt.unexplained + 1,
            evidence=evidence,
            made_progress=made_progress,
            has_begun=made_progress or has_begun(self._folder / run.attempt.folder),
            patterns=self._patterns,
        )
        match outcome:
            case OutOfTime(reason=reason):
                self._retry(run, reason, faults=0)
                return None
            case BadMachine():
                return self._after_fault(run, outcome, made_progress)
            case BadConfiguration(reason=reason, cost=cost):
                run.evidence = self._past(run, reason)
                self._end_other_tasks(run, report)
                return BadConfiguration(reason, self._spent(run, report) if cost is None else cost)
        return outcome

    def _spent(self, run: Run, report: JobReport | None) -> float | None:
        """What a run that has failed without a word of its cost has spent at least, where known."""
        said = [row[2] for row in run.curve[-1:]]
        if self._config.is_cost_seconds:
            if isinstance(report, Failed) and report.seconds is not None:
                said.append(report.seconds)
            start = self.start(run)
            if report is None and start is not None and run.seen is not None:
                said.append(run.seen - start.started)
        return max((spent for spent in said if spent > 0), default=None)

    def _after_fault(self, run: Run, outcome: BadMachine, made_progress: bool) -> Ending | None:
        past = self._past(run, outcome.reason)
        if outcome.excludes_node and past.node is not None:
            self._on_bad_node(past.node, outcome.reason)
        faults = 1 if made_progress else run.attempt.faults + 1
        retries = min(self._config.machine_retries, 1 if outcome.is_setup else math.inf)
        if faults > retries:
            run.evidence = past
            self._cancel([run])
            by = "" if outcome.is_setup else " by machines"
            return Lost(f"{faults} attempts were spoilt{by}, the last: {outcome.reason}")
        unexplained = run.attempt.unexplained + (not outcome.is_explained)
        exclude = (past.node,) if past.node is not None and outcome.blames_node else ()
        self._retry(run, outcome.reason, faults, unexplained, exclude)
        return None

    def _retry(
        self,
        run: Run,
        reason: str,
        faults: int,
        unexplained: int = 0,
        exclude: tuple[str, ...] = (),
    ) -> None:
        """Submit the next attempt, once the one before can do no harm."""
        run.past = [*run.past, self._past(run, reason)]
        run.save_past(run.past)
        self._cancel([run])
        number = run.attempt.attempt + 1
        folder = f"jobs/{run.key}-{number}"
        run.attempt = Attempt(
            attempt=number,
            folder=folder,
            logs=folder,
            tier=run.attempt.tier,
            exclude=exclude,
            faults=faults,
            unexplained=unexplained,
        )
        run.state, run.gone_since, run.seen = None, None, None
        self.submit([run])

    def cancel(self, runs: Sequence[Run]) -> None:
        """End the jobs of runs, for good: when the sweep goes on they are started anew.

        Raises:
            SchedulerDownError: it gives no answer.
        """
        submitted = [run for run in runs if run.attempt.id is not None]
        for run in runs:
            self._save(run, run.attempt.model_copy(update={"is_cancelled": True}))
        self._mark_cancelled(submitted)
        self.executor.cancel([self.handle(run.attempt) for run in submitted])

    def give_up(self, run: Run) -> None:
        """End the job of a run that the user has dropped."""
        self._cancel([run])

    def stop(self, run: Run) -> None:
        """Ask a run to end at its next report."""
        run.is_stopped = True
        with suppress(FileNotFoundError):  # a folder that is gone: the next attempt is told
            stop(self._folder / run.attempt.folder)

    def handle(self, attempt: Attempt) -> Handle:
        """What the executor needs to find the attempt's job."""
        logs = self._folder / (attempt.logs or attempt.folder)
        return Handle(str(attempt.id), self._folder / attempt.folder, logs)

    def has_report(self, run: Run) -> bool:
        """Whether the run has already said how it ended."""
        return self._read_report(run)[0] is not None

    def has_result(self, run: Run) -> bool:
        """Whether it has finished, and not failed or been stopped."""
        return isinstance(self._read_report(run)[0], Finished)

    def start(self, run: Run) -> Start | None:
        """Where and when the run's newest attempt has started."""
        return read_start(self._folder / run.attempt.folder)

    def script(self, key: str, tier: str | None) -> str | None:
        """What would be handed to the scheduler for the first attempt at a run."""
        attempt = self.first_attempt(key, tier)
        folder = self._folder / attempt.folder
        return self.executor.script(
            Submission(
                name=self._name(folder.name, 1),
                folders=(folder,),
                log_folder=folder,
                options=self._config.options(tier),
                exclude=tuple(self._excluded_nodes()),
            )
        )

    def moved_to(self, folder: Path) -> Jobs:
        """The same in another folder."""
        moved = copy(self)
        moved._folder = folder
        return moved

    def _name(self, folder_name: str, n_elements: int) -> str:
        return f"{self.id}-{folder_name}" + (f"-x{n_elements}" if n_elements > 1 else "")

    def _submission(self, group: Sequence[Run]) -> Submission:
        attempt = group[0].attempt
        return Submission(
            name=attempt.name,
            folders=tuple(self._folder / run.attempt.folder for run in group),
            log_folder=self._folder / attempt.logs,
            options=self._config.options(attempt.tier),
            exclude=tuple(sorted({*self._excluded_nodes(), *attempt.exclude})),
            since=attempt.submitted,
        )

    def _write_job(self, run: Run, attempt: Attempt) -> None:
        folder = self._folder / attempt.folder
        is_checked = self._config.health_check
        if is_checked is None:
            is_checked = self._config.executor == "slurm"
        write_job(
            folder,
            JobFile(
                function=self._config.function,
                command=self._config.command_line,
                python_path=list(self._python_path),
                params=run.params,
                seed=run.seed,
                settings=self._config.settings,
                shared_folder=self._folder / "shared",
                checkpoint_folder=self._checkpoints(run),
                attempt=attempt.attempt,
                health_folder=self._folder / "health" if is_checked else None,
                n_devices=n_gpus(self._config.options(attempt.tier)),
                max_slowdown=self._config.max_slowdown,
            ),
        )
        if run.is_stopped:
            stop(folder)

    def _checkpoints(self, run: Run) -> Path:
        return self._folder / "checkpoints" / run.key

    def _save(self, run: Run, attempt: Attempt) -> None:
        run.save(attempt)
        run.attempt = attempt

    def _read_curve(self, run: Run) -> None:
        """Keep up with what the job says of its progress."""
        folder = self._folder / run.attempt.folder
        place = run_folder(folder)
        try:
            stamp = (place, (place / CURVE).stat().st_size)
        except OSError:
            return
        if stamp == run.curve_stamp:
            return
        run.curve_stamp = stamp
        new = [_row(point) for point in read_curve(place)]
        if new:
            before = [row for row in run.curve if row[0] < new[0][0]]
            run.curve = [*before, *new]

    def _past(self, run: Run, reason: str) -> PastAttempt:
        start = read_start(self._folder / run.attempt.folder)
        handle = self.handle(run.attempt)
        return PastAttempt(
            attempt=run.attempt.attempt,
            id=run.attempt.id,
            node=_first_node(run.state) or (start.node if start is not None else None),
            reason=reason,
            log=read_log(handle)[-_MAX_TAIL:],
            log_files=tuple(str(path.relative_to(self._folder)) for path in log_files(handle)),
        )

    def _cancel(self, runs: Sequence[Run]) -> None:
        """What may still run, or be requeued, of attempts that are given up."""
        submitted = [run for run in runs if run.attempt.id is not None]
        self._mark_cancelled(submitted)
        try:
            self.executor.cancel([self.handle(run.attempt) for run in submitted])
        except SchedulerDownError as error:
            self.trouble = str(error)

    def _mark_cancelled(self, runs: Sequence[Run]) -> None:
        """A job that heeds the signal by a checkpoint must not ask to be started again."""
        for run in runs:
            with suppress(FileNotFoundError):  # a folder that is gone
                mark_cancelled(self._folder / run.attempt.folder)

    def _end_other_tasks(self, run: Run, report: JobReport | None) -> None:
        """Where one task of several has failed, the others may wait for it for long."""
        options = self._config.options(run.attempt.tier)
        if isinstance(report, Failed) and n_tasks(options) > 1:
            self._cancel([run])


def _groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that may be one job array: they ask for the same."""
    groups: dict[tuple[str | None, tuple[str, ...]], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.attempt.tier, run.attempt.exclude), []).append(run)
    return list(groups.values())


def _row(point: CurvePoint) -> list[float]:
    return [point.progress, point.output, point.cost]


def _first_node(state: JobState | None) -> str | None:
    """Of a job on several nodes nobody knows which one was bad; the first is as good a guess."""
    if state is None or not state.node:
        return None
    match = re.match(r"([^,\[]+)(?:\[(\d+))?", state.node)
    return match[1] + (match[2] or "") if match else None
