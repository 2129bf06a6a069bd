"""What the end of a job means: a result, a stop, a bad configuration, a broken machine.

The job's own report is believed first. Without one, what the scheduler says of the job and the last
lines of its log are looked up in :data:`PATTERNS`; a sweep file's ``outcomes`` come before these.
What no pattern explains is the machine's fault the first time, and the configuration's the second:
what kills its process on two machines is likelier to be itself than the machines.

What ends before the user's own code has begun is never the configuration's fault, but the machine's
or the set-up's: a module that is missing, memory that does not even hold the imports.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, field_validator

from carbs.launchers.job.files import Failed, Finished, JobReport, Stopped, Unhealthy
from carbs.launchers.job.protocol import Result

# What a command that was killed has left in its log.
_KILLED = re.compile(r"killed by (SIG\w+)")

MAX_ATTEMPTS = 2

Verdict = Literal["bad_configuration", "bad_machine", "time_limit"]


class Pattern(BaseModel):
    """A line of the table.

    Attributes:
        pattern: a regular expression, searched without regard to case in the text of the user's
            exception, or in the scheduler's state followed by the log's last lines.
        verdict: whose fault it is.
        reason: in a few words.
        excludes_node: whether the sweep is to keep away from the node for a while.
        blames_node: whether the run is to be tried again on another one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: str
    verdict: Verdict
    reason: str
    excludes_node: bool = False
    blames_node: bool = True

    @field_validator("pattern")
    @classmethod
    def _is_an_expression(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    def matches(self, text: str) -> bool:
        return re.search(self.pattern, text, re.IGNORECASE | re.MULTILINE) is not None


def _table(verdict: Verdict, *rows: tuple[str, str], **fields: bool) -> list[Pattern]:
    return [
        Pattern(pattern=pattern, verdict=verdict, reason=reason, **fields)
        for reason, pattern in rows
    ]


# The first that matches counts. Slurm's states stand at the very beginning of the text: \A.
PATTERNS: tuple[Pattern, ...] = (
    *_table(
        "bad_machine",
        ("the GPU's memory is broken (ECC)", r"\bECC error|uncorrectable ECC|double.bit error"),
        ("the GPU reports an error (Xid)", r"\bXid\b"),
        ("the GPU is lost", r"GPU is lost|fallen off the bus|CUDA error: .*hardware"),
        (
            "the GPU cannot be reached",
            r"CUDA driver initialization failed|no CUDA-capable device|No CUDA GPUs are available|"
            r"CUDA error: (initialization error|system not yet initialized)|"
            r"all CUDA-capable devices are busy|nvidia-smi has failed|NVML_ERROR",
        ),
        ("the node failed", r"\A(NODE_FAIL|BOOT_FAIL)\b|DUE TO NODE FAILURE"),
        ("the node could not start the job", r"slurmstepd: error: execve|Unable to create step"),
        excludes_node=True,
    ),
    *_table(
        "bad_configuration",
        (
            "out of GPU memory",
            r"CUDA out of memory|cuda\.OutOfMemoryError|HIP out of memory|"
            r"CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory",
        ),
        (
            "out of memory",
            r"\AOUT_OF_ME|exceeded memory limit|oom[-_ ]kill|DefaultCPUAllocator: |"
            r"\bMemoryError\b|Cannot allocate memory|bad_alloc|OutOfMemoryError",
        ),
    ),
    *_table(
        "bad_machine",
        (
            "the GPUs cannot talk to each other (NCCL)",
            r"NCCL.*(time[d ]*out|timeout)|collective operation timeout|"
            r"nccl(System|Remote|Internal)Error|NCCL.*(unhandled|remote process|connection)",
        ),
        (
            "the nodes cannot talk to each other",
            r"gloo.*(time[d ]*out|Connection|Connect)|Connection (closed|reset) by peer|"
            r"Connection refused|DistNetworkError|DistStoreError|No route to host",
        ),
        ("a task of the job was lost", r"TaskLostError"),
        ("the disk is full", r"No space left on device|Errno 28\b|Disk quota exceeded"),
        (
            "the file system fails",
            r"Input/output error|Errno 5\b|Stale (NFS )?file handle|Read-only file system|"
            r"Transport endpoint is not connected|Remote I/O error",
        ),
        (
            "the job's file was never put in place",
            r"Waited for \d+ seconds but could not find submitted jobs",
        ),
    ),
    *_table(
        "time_limit",
        (
            "time limit",
            r"\A(TIMEOUT|DEADLINE)\b|DUE TO TIME LIMIT|cut off by the time limit",
        ),
    ),
    *_table(
        "bad_machine",
        ("preempted", r"\APREEMPTED\b|DUE TO (PREEMPTION|JOB REQUEUE)|^preempted: "),
        blames_node=False,
    ),
    *_table(
        "bad_machine",
        ("cancelled from outside", r"\A(CANCELLED|REVOKED)\b|CANCELLED AT"),
    ),
)


@dataclass(frozen=True)
class Completed:
    """A result to learn from."""

    result: Result


@dataclass(frozen=True)
class BadConfiguration:
    """A failure to learn from. ``cost`` is what was spent, where known."""

    reason: str
    cost: float | None = None


@dataclass(frozen=True)
class StoppedRun:
    """Stopped on the controller's wish; its learning curve says how it would have ended."""

    spent: float


@dataclass(frozen=True)
class BadMachine:
    """To be tried again; the search learns nothing.

    Attributes:
        excludes_node: whether the sweep is to keep away from the node for a while.
        blames_node: whether it is to be tried on another one.
        is_explained: whether it is known to be the machine's fault.
        is_setup: whether it is likelier to be that of what was set up: once more is enough.
    """

    reason: str
    excludes_node: bool = False
    blames_node: bool = True
    is_explained: bool = True
    is_setup: bool = False


@dataclass(frozen=True)
class OutOfTime:
    """Cut off by its time limit, but ahead of where it began: to go on from its checkpoint."""

    reason: str = "time limit"


Outcome = Completed | BadConfiguration | StoppedRun | BadMachine | OutOfTime


def classify(
    report: JobReport | None,
    attempt: int,
    *,
    evidence: str = "",
    made_progress: bool = False,
    has_begun: bool = True,
    patterns: Sequence[Pattern] = PATTERNS,
) -> Outcome:
    """Judge a job that has reported, or that has ended.

    Args:
        report: what the job wrote, if anything.
        attempt: from 1: how often the trial's job has now ended without an explanation.
        evidence: the scheduler's state of the job, and below it the log's last lines.
        made_progress: whether it has left a newer checkpoint than it began with.
        has_begun: whether the user's own code ran, where there is no report.
        patterns: what explains an end; the first that matches.
    """
    match report:
        case Finished(result=result):
            return Completed(result)
        case Failed(has_begun=False):
            return _judge_setup(report.reason, report.traceback, patterns)
        case Failed(exception=None, reason=reason, cost=cost):
            return BadConfiguration(reason, cost)
        case Failed():
            return _judge_exception(report, patterns)
        case Stopped(cost=cost):
            return StoppedRun(cost)
        case Unhealthy():
            # What is wrong with a disk that all nodes share is no node's fault.
            known = [_first(problem, patterns) for problem in report.problems]
            is_shared = bool(known) and all(p is not None and not p.excludes_node for p in known)
            return BadMachine(f"failed health check: {report.reason}", not is_shared)
    if not has_begun:
        return _judge_setup(None, evidence, patterns)
    found = _first(evidence, patterns)
    if found is not None:
        match found.verdict:
            case "bad_configuration":
                return BadConfiguration(found.reason)
            case "bad_machine":
                return BadMachine(found.reason, found.excludes_node, found.blames_node)
            case "time_limit" if made_progress:
                return OutOfTime(found.reason)
            case "time_limit":
                return BadConfiguration(f"too slow: {found.reason}, and no newer checkpoint")
    killed = _KILLED.search(evidence)
    how = f", {killed[0]}" if killed is not None else ""
    if attempt < MAX_ATTEMPTS:
        return BadMachine(f"the job ended without a report{how}", is_explained=False)
    return BadConfiguration(f"the job ended without a report, {attempt} times in a row{how}")


def _judge_setup(reason: str | None, evidence: str, patterns: Sequence[Pattern]) -> BadMachine:
    """Of what has ended before the user's own code began.

    Args:
        reason: what was raised; None where the job was ended.
        evidence: its traceback, or the scheduler's state and the log's last lines.
    """
    found = _first("\n".join([reason, evidence]) if reason else evidence, patterns)
    if found is not None and found.verdict == "bad_machine":
        what = found.reason if reason is None else f"{found.reason}: {reason}"
        return BadMachine(what, found.excludes_node, found.blames_node)
    if found is None:
        said = reason or "the job ended"
        advice = "see its log"
    elif found.verdict == "time_limit":
        said, advice = found.reason, "raise timeout_min"
    else:
        said = found.reason
        advice = "raise mem_gb" if "memory" in said else "see its log"
    return BadMachine(f"{said}, before the training itself had begun: {advice}", is_setup=True)


def _judge_exception(report: Failed, patterns: Sequence[Pattern]) -> Outcome:
    """An exception is the configuration's fault, unless its words are those of a machine's."""
    # The exceptions' own lines; the code between them is quoted with an indent.
    messages = [line for line in report.traceback.splitlines() if not line.startswith(" ")]
    found = _first("\n".join([report.reason, *messages]), patterns)
    if found is None:
        return BadConfiguration(report.reason, report.cost)
    reason = f"{found.reason}: {report.reason}"
    if found.verdict == "bad_machine":
        return BadMachine(reason, found.excludes_node, found.blames_node)
    return BadConfiguration(reason, report.cost)


def _first(text: str, patterns: Sequence[Pattern]) -> Pattern | None:
    return next((pattern for pattern in patterns if pattern.matches(text)), None)
