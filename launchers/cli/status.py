"""``carbs status``: what a sweep is at, by its study and folder, for whoever may read these.

The scheduler is asked only where jobs wait, and twice a minute at the most.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from optuna.trial import TrialState
from pydantic import BaseModel, ConfigDict
from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text

from carbs.launchers.cli.progress import measured
from carbs.launchers.cluster.executors import Handle, JobState, SlurmExecutor
from carbs.launchers.controller.folder import CONFIG_FILE, has_begun, has_controller
from carbs.launchers.controller.ledger import EVIDENCE, JOB, PAST
from carbs.launchers.controller.sweep import Status, Sweep
from carbs.launchers.errors import FolderError
from carbs.launchers.job.files import read_start
from carbs.study import DROPPED, FAILURE, FORGOTTEN

_N_FAILURES = 10
_ASK_EVERY_S = 30.0
_COMMAND = "command.txt"


class JobInFlight(BaseModel):
    """The newest job of a trial that has not ended.

    Attributes:
        node: where it runs; None while it waits.
        age_s: since it was submitted.
        is_cancelled: by the user; the sweep starts it anew when it goes on.
        reason: why it waits, in the scheduler's words.
        advice: what to do where it will not start by itself.
    """

    model_config = ConfigDict(frozen=True)

    trial: int
    attempt: int
    job_id: str | None
    tier: str | None
    node: str | None
    age_s: float | None
    is_cancelled: bool
    predicted_cost: float | None
    folder: Path
    reason: str = ""
    advice: str = ""


class ExcludedNode(BaseModel):
    """A node that was found broken.

    Attributes:
        for_s: until it is given another chance; 0 where it has it again.
        times: that it was found broken.
    """

    model_config = ConfigDict(frozen=True)

    node: str
    reason: str
    for_s: float
    times: int


class TrialFailure(BaseModel):
    """Why a trial has no result, or why one of its attempts was not the last.

    Attributes:
        kind: ``failed`` (the configuration), ``lost`` (machines, for good) or ``retried``.
        log: the last lines of the attempt's log.
        log_files: where the rest is, below the sweep's folder.
    """

    model_config = ConfigDict(frozen=True)

    trial: int
    kind: str
    reason: str
    node: str | None = None
    log: str = ""
    log_files: tuple[str, ...] = ()


class BestTrial(BaseModel):
    """The best output that a run has ended with."""

    model_config = ConfigDict(frozen=True)

    trial: int
    output: float
    cost: float


class SweepStatus(BaseModel):
    """``carbs status --json``.

    Attributes:
        trials: how many there are in each state.
        best: None where no run has finished.
        is_over: whether nothing runs, and the trials or the budget are used up.
        has_controller: whether one is at work; None where nobody can say.
        command: the line of a shell with which the sweep goes on; None where it is not known.
        spent, reserved: cost of what has ended, and predicted cost of what runs.
        left: of the budget, beyond both; None without a budget.
        failures: the newest last.
        report: the page; None where there is none yet.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    folder: Path
    max_trials: int
    trials: dict[str, int]
    cost_unit: str
    spent: float
    reserved: float
    budget: float | None
    left: float | None
    jobs: list[JobInFlight]
    excluded_nodes: list[ExcludedNode]
    failures: list[TrialFailure]
    report: Path | None = None
    best: BestTrial | None = None
    has_controller: bool | None = None
    command: str | None = None
    is_over: bool = False


def keep_command(folder: Path, command: str) -> None:
    """Write down with which command, typed here, the sweep in a folder goes on."""
    (folder / _COMMAND).write_text(f"cd {shlex.quote(str(Path.cwd()))} && {command}\n")


def _kept_command(folder: Path) -> str | None:
    file = folder / _COMMAND
    return file.read_text().strip() if file.exists() else None


def _is_over(sweep: Sweep, trials: Mapping[str, int]) -> bool:
    if trials["running"] or trials["waiting"]:
        return False
    account, budget = sweep.ledger.account(), sweep.config.budget
    is_spent = budget is not None and budget - account.spent < (account.cheapest or 0)
    return is_spent or account.n_trials >= sweep.config.max_trials


def _best(sweep: Sweep, status: Status) -> BestTrial | None:
    sign = -1 if sweep.ledger.direction == "maximize" else 1
    best = min(measured(status), key=lambda run: sign * run.output, default=None)
    if best is None:
        return None
    return BestTrial(trial=int(best.id or 0), output=best.output, cost=best.cost)


def read_status(sweep: Sweep) -> SweepStatus:
    """Look at a sweep."""
    now = time.time()
    account = sweep.status()
    dropped = set(sweep.study.user_attrs.get(DROPPED, ()))
    trials = dict.fromkeys(
        ("finished", "stopped", "failed", "running", "waiting", "lost", "dropped"), 0
    )
    jobs: list[JobInFlight] = []
    failures: list[TrialFailure] = []
    for trial in sweep.study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        state = _state(trial.state, FORGOTTEN in attributes, trial.number in dropped)
        trials[state] += 1
        for past in attributes.get(PAST, []):
            failures.append(_failure(trial.number, "retried", past["reason"], past))
        if state in ("failed", "lost"):
            reason = attributes.get(FAILURE, {}).get("reason") or attributes.get(FORGOTTEN)
            evidence = attributes.get(EVIDENCE, {})
            failures.append(_failure(trial.number, state, str(reason), evidence))
        if state == "running":
            jobs.append(_job(sweep, trial.number, attributes, now))
    budget = sweep.config.budget
    sweep.nodes.refresh()
    report = sweep.folder / "report.html"
    return SweepStatus(
        name=sweep.config.name,
        folder=sweep.folder,
        max_trials=sweep.config.max_trials,
        trials=trials,
        cost_unit=sweep.config.cost_unit,
        spent=account.spent,
        reserved=account.reserved,
        budget=budget,
        left=None if budget is None else budget - account.spent - account.reserved,
        jobs=_with_reasons(sweep, jobs),
        excluded_nodes=[
            ExcludedNode(
                node=name,
                reason=node["reason"],
                for_s=max(0.0, node["until"] - now),
                times=node["times"],
            )
            for name, node in sweep.nodes.all().items()
        ],
        failures=failures[-_N_FAILURES:],
        report=report if report.exists() else None,
        best=_best(sweep, account),
        is_over=_is_over(sweep, trials),
        has_controller=has_controller(sweep.folder),
        command=_kept_command(sweep.folder),
    )


# When the scheduler was last asked about a sweep, and what it said of each job.
_answers: dict[Path, tuple[float, dict[str, JobState]]] = {}


def _with_reasons(sweep: Sweep, jobs: list[JobInFlight]) -> list[JobInFlight]:
    """With what the scheduler says of those that wait."""
    waiting = [job for job in jobs if job.job_id is not None and not job.is_cancelled]
    if not waiting or not isinstance(sweep.jobs.executor, SlurmExecutor):
        return jobs
    asked, states = _answers.get(sweep.folder, (float("-inf"), {}))
    if time.monotonic() - asked > _ASK_EVERY_S or not {str(j.job_id) for j in waiting} <= {*states}:
        handles = [Handle(str(job.job_id), job.folder, job.folder) for job in waiting]
        found = zip(handles, sweep.jobs.executor.states(handles), strict=True)
        states = {handle.id: state for handle, state in found}
        _answers[sweep.folder] = time.monotonic(), states
    return [
        job.model_copy(update={"reason": state.reason, "advice": state.advice})
        if (state := states.get(str(job.job_id))) is not None
        else job
        for job in jobs
    ]


def find_sweep(where: Path | None) -> Path:
    """The folder of the sweep that the user means.

    Args:
        where: a sweep's folder, or a study's name, in ``sweeps/``; None for the only sweep here.

    Raises:
        FolderError: there is none, or several.
    """
    if where is not None:
        for folder in (where, Path("sweeps") / where):
            if has_begun(folder):
                return folder
        raise FolderError(
            f"{where} is neither a sweep's folder nor the name of one in sweeps/: "
            "give the path that --folder had"
        )
    found = [
        path.parent
        for pattern in ("", "*/", "sweeps/*/")
        for path in Path().glob(pattern + CONFIG_FILE)
    ]
    if len(found) == 1:
        return found[0]
    names = ", ".join(str(folder) for folder in found)
    raise FolderError(
        f"several sweeps are here: name one of {names}"
        if found
        else "no sweep is here: name its folder, its sweep file or its study"
    )


def log_paths(sweep: Sweep, number: int, attempt: int | None = None) -> list[Path]:
    """The log files of a trial's newest attempt, or of another.

    Raises:
        FolderError: there is no such trial or attempt, or it has no job yet.
    """
    attributes = sweep.trial(number).user_attrs
    if JOB not in attributes:
        raise FolderError(f"trial {number} has no job yet")
    current = attributes[JOB]["attempt"]
    wanted = current if attempt is None else attempt
    folder = sweep.folder / attributes[JOB].get("logs", attributes[JOB]["folder"])
    job_id = attributes[JOB]["id"]
    if wanted != current:
        past = [p for p in attributes.get(PAST, []) if p["attempt"] == wanted]
        if not past:
            raise FolderError(f"trial {number} has no attempt {wanted}: it is at {current}")
        return [sweep.folder / file for file in past[0]["log_files"]]
    return sorted(folder.glob(f"{job_id}_*_log.*"), key=lambda path: (path.suffix != ".out", path))


def screen(status: SweepStatus) -> Group:
    """For people."""
    trials = Table(title=f"{status.name} in {status.folder}", title_justify="left")
    for state in status.trials:
        trials.add_column(state, justify="right")
    trials.add_row(*(str(n) for n in status.trials.values()))
    unit = status.cost_unit
    n_trials = sum(status.trials[name] for name in ("finished", "stopped", "failed", "running"))
    counts = f"trials: {n_trials} of {status.max_trials}"
    if status.best is not None:
        best = status.best
        counts += f"; best: {best.output:.4f} in trial {best.trial}, cost {best.cost:.4g} {unit}"
    cost = f"cost: {status.spent:.1f} {unit} spent, {status.reserved:.1f} reserved"
    if status.left is not None:
        cost += f", {status.left:.1f} left of {status.budget:g}"
    parts: list[Any] = [trials, Text(counts), Text(cost)]
    if status.jobs:
        jobs = Table(title="jobs in flight", title_justify="left")
        for name in ("trial", "attempt", "job", "tier", "node", "age"):
            jobs.add_column(
                name, justify="right" if name in ("trial", "attempt", "age") else "left"
            )
        for job in status.jobs:
            jobs.add_row(
                str(job.trial),
                str(job.attempt),
                job.job_id or "not submitted",
                job.tier or "",
                "cancelled" if job.is_cancelled else _where(job),
                "" if job.age_s is None else _duration(job.age_s),
            )
        parts.append(jobs)
        parts += [
            Text(f"trial {job.trial} does not start ({job.reason}): {job.advice}", style="yellow")
            for job in status.jobs
            if job.advice
        ]
    if status.excluded_nodes:
        nodes = Table(title="excluded nodes", title_justify="left")
        for name in ("node", "for", "times", "because"):
            nodes.add_column(name)
        for node in status.excluded_nodes:
            for_how_long = _duration(node.for_s) if node.for_s else "has another chance"
            nodes.add_row(node.node, for_how_long, str(node.times), Text(node.reason))
        parts.append(nodes)
    if status.failures:
        failures = Table(title="last failures", title_justify="left")
        for name in ("trial", "", "node", "because"):
            failures.add_column(name)
        for failure in status.failures:
            failures.add_row(
                str(failure.trial), failure.kind, failure.node or "", Text(failure.reason)
            )
        parts.append(failures)
    return Group(*parts)


def controller_line(status: SweepStatus) -> Text | None:
    """Whether somebody sees to the sweep; to be printed without breaking a command in two."""
    if status.has_controller is None or (status.is_over and not status.has_controller):
        return None
    if status.has_controller:
        return Text("a controller is at work")
    again = "`carbs sweep` with its sweep file" if status.command is None else status.command
    return Text(
        "no controller is at work: nothing is started, and what ends is not collected. "
        f"This goes on:\n  {again}",
        style="yellow",
    )


def report_line(status: SweepStatus) -> Text:
    """Where the report is; to be printed without breaking it in two."""
    if status.report is None:
        return Text(
            f"report: none yet; carbs report {status.folder} writes it, once enough trials of "
            "different cost have finished"
        )
    return Text(f"report: {status.report}", style=Style(link=status.report.as_uri()))


def _where(job: JobInFlight) -> str:
    if job.advice or job.node is None:
        return f"waiting: {job.reason}" if job.reason else "waiting"
    return job.node


def _state(state: TrialState, is_forgotten: bool, is_dropped: bool) -> str:
    if is_dropped:
        return "dropped"
    if is_forgotten:
        return "lost"
    return {
        TrialState.COMPLETE: "finished",
        TrialState.PRUNED: "stopped",
        TrialState.FAIL: "failed",
        TrialState.RUNNING: "running",
        TrialState.WAITING: "waiting",
    }[state]


def _failure(number: int, kind: str, reason: str, kept: Mapping[str, Any]) -> TrialFailure:
    return TrialFailure(
        trial=number,
        kind=kind,
        reason=reason,
        node=kept.get("node"),
        log=kept.get("log", ""),
        log_files=tuple(kept.get("log_files", ())),
    )


def _job(sweep: Sweep, number: int, attributes: Mapping[str, Any], now: float) -> JobInFlight:
    attempt = attributes.get(JOB, {})
    folder = sweep.folder / attempt.get("folder", f"jobs/{number:05d}-1")
    start = read_start(folder)
    submitted = attempt.get("submitted")
    return JobInFlight(
        trial=number,
        attempt=attempt.get("attempt", 1),
        job_id=attempt.get("id"),
        tier=attempt.get("tier"),
        node=None if start is None else start.node,
        age_s=None if not submitted else max(0.0, now - submitted),
        is_cancelled=attempt.get("is_cancelled", False),
        predicted_cost=attributes.get("predicted", {}).get("predicted_cost"),
        folder=folder,
    )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
