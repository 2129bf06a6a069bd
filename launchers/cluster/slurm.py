"""Slurm's commands, and what their answers mean.

What a job reads of its environment is in :mod:`carbs.launchers.job`; whose fault a state is, in
:mod:`carbs.launchers.controller.outcomes`.

Jobs are submitted through submitit; asked after with one ``squeue`` for all of them, and ``sacct``
for those that the queue has forgotten. An answer that does not come is no answer: neither a
controller of Slurm's nor its database that is down says anything about a job.
"""

from __future__ import annotations

import getpass
import re
import subprocess
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from carbs.launchers.cluster.options import PYTHON, slurm_options
from carbs.launchers.errors import SchedulerDownError, SweepFileError
from carbs.launchers.job.process import MAX_TIMEOUTS, JobRun

# That are called here, or by submitit.
COMMANDS = ("sbatch", "squeue", "sinfo", "sacct", "scancel", "scontrol")

_TIMEOUT_S = 30
_CHUNK = 400  # ids in one command
_ALIVE = (
    *("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED"),
    *(
        "RESIZING",
        "SUSPENDED",
        "SIGNALING",
        "STAGE_OUT",
        "STOPPED",
        "SPECIAL_EXIT",
        "RESV_DEL_HOLD",
    ),
)
# What sbatch says where the same request may succeed later.
_LATER = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Connection refused|Connection timed out|"
    r"Zero Bytes were transmitted|temporarily|Resource temporarily|Slurm controller not responding|"
    r"SubmitJobsPerUser|MaxSubmitJob|job submit limit|MaxJobCount|Slurmctld is in standby|"
    r"communication (failure|error)|Transport endpoint",
    re.IGNORECASE,
)
_NO_SUCH_NODES = re.compile(
    r"node configuration is not available|nodes? .*not available", re.IGNORECASE
)


# Reasons for which a job waits until somebody does something; the others pass by themselves.
_ADVICE = (
    (r"JobHeldAdmin", "an administrator holds it, and must release it"),
    (r"held|JobHoldMaxRequeue", "it is held; start it by: scontrol release {id}"),
    (
        r"PartitionTimeLimit|MaxWallDuration|TimeLimit",
        "its timeout_min is above what is allowed: lower it in the sweep file, or name another "
        "partition or qos, then carbs retry the trial",
    ),
    (
        r"PartitionNodeLimit|BadConstraints|PartitionConfig|MaxNodePerJob|MaxMemPerJob|"
        r"MaxCpuPerJob|MaxTRESPerJob|MaxGRESPerJob|MaxMemoryPerJob|NodeDown",
        "no node or limit allows what its executor_options ask for: lower them in the sweep file, "
        "then carbs retry the trial",
    ),
    (r"PartitionDown|PartitionInactive", "its partition is closed: name another, or wait"),
    (
        r"InvalidAccount|InvalidQOS|AccountNotAllowed|QOSNotAllowed|Licenses.*invalid",
        "its account or qos may not run here: correct it in the sweep file, then carbs retry",
    ),
    (r"DependencyNeverSatisfied", "what it depends on has failed: carbs retry the trial"),
    (r"ReqNodeNotAvail", "nodes that it needs are down or reserved: sinfo -R says why"),
)


@dataclass(frozen=True)
class SlurmState:
    """What Slurm says of a job.

    Attributes:
        state: such as ``RUNNING`` or ``CANCELLED by 0``.
        node: the nodes, in Slurm's notation; None before it has any.
        reason: why it waits, such as ``JobHeldUser``; empty where it does not.
    """

    state: str
    node: str | None = None
    reason: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether it is queued, running, or about to be one of these."""
        return self.state.split(" ")[0].rstrip("+") in _ALIVE

    def advice(self, job_id: str) -> str:
        """What to do about a job that waits for ever; empty where it will start by itself."""
        if self.state not in ("PENDING", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"):
            return ""
        for pattern, advice in _ADVICE:
            if re.search(pattern, self.reason, re.IGNORECASE):
                return advice.format(id=job_id)
        return f"scontrol release {job_id}" if self.state != "PENDING" else ""


class Slurm:
    """Slurm's commands."""

    def submit(
        self, folder: Path, name: str, options: Mapping[str, Any], runs: Sequence[JobRun]
    ) -> list[str]:
        """Submit a job, or a job array where there are several runs; returns the ids.

        Args:
            folder: for the log files.
            name: of the job.
            options: of submitit's ``SlurmExecutor``.
            runs: what the jobs do.

        Raises:
            SchedulerDownError: not now; perhaps later.
            SweepFileError: Slurm refuses what the options ask for.
        """
        executor = _Submission.of(folder, name, options)
        try:
            if len(runs) == 1:
                return [str(executor.submit(runs[0]).job_id)]
            return [str(job.job_id) for job in executor.submit_array(runs)]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            said = " ".join(str(error).split())
            if isinstance(error, OSError) or _LATER.search(said):
                raise SchedulerDownError(f"sbatch: {said}") from None
            if options.get("exclude") and _NO_SUCH_NODES.search(said):
                # Better a node that was bad than none.
                rest = {key: value for key, value in options.items() if key != "exclude"}
                return self.submit(folder, name, rest, runs)
            raise SweepFileError(
                f"Slurm refuses the job {name}, see executor_options: {said}"
            ) from None

    def queue(self) -> dict[str, SlurmState] | None:
        """The user's jobs in the queue, those that ended lately too, by id; None without answer."""
        answer = _ask(
            ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}"],
            ["--format=%i|%T|%N|%r"],
        )
        return None if answer is None else _read_table(answer)

    def accounting(self, ids: Iterable[str]) -> dict[str, SlurmState] | None:
        """What the database knows of jobs, by id; None without an answer."""
        known: dict[str, SlurmState] = {}
        wanted = sorted(ids)
        for start in range(0, len(wanted), _CHUNK):
            answer = _ask(
                ["sacct", "--noheader", "--parsable2", "--allocations"],
                ["--format=JobID,State,NodeList", "--jobs=" + ",".join(wanted[start:][:_CHUNK])],
                nothing="accounting storage is disabled",
            )
            if answer is None:
                return None
            known |= _read_table(answer)
        return known

    def find(self, name: str, since: float) -> list[str] | None:
        """The ids of the jobs of this name, oldest first; None without an answer.

        Args:
            name: as submitted.
            since: Unix time before which no such job can have been submitted.
        """
        queued = _ask(
            ["squeue", "--noheader", "--array", "--states=all", f"--name={name}", "--format=%i"]
        )
        if queued is None:
            return None
        if not queued.split():
            start = datetime.fromtimestamp(since) - timedelta(hours=1)
            queued = _ask(
                ["sacct", "--noheader", "--parsable2", "--allocations"],
                ["--format=JobID", f"--name={name}", f"--starttime={start:%Y-%m-%dT%H:%M:%S}"],
                nothing="accounting storage is disabled",
            )
        return None if queued is None else sorted(queued.split(), key=_numbers)

    def names(self) -> dict[str, str] | None:
        """The names of the user's jobs that are queued or running, by id; None without answer."""
        answer = _ask(
            ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%j"]
        )
        if answer is None:
            return None
        return dict(line.split("|", 1) for line in answer.splitlines() if "|" in line)

    def partitions(self) -> set[str] | None:
        """The names of all partitions; None where the controller does not answer."""
        answer = _ask(["sinfo", "--noheader", "--all", "--format=%R"])
        return None if answer is None else set(answer.split())

    def keeps_accounts(self) -> bool:
        """Whether the accounting database answers, which knows what the queue has forgotten."""
        return _ask(["sacct", "--noheader", "--allocations", "--format=JobID"]) is not None

    def cancel(self, ids: Iterable[str]) -> bool:
        """Cancel jobs, and say whether Slurm has taken note. One that has ended is no matter."""
        wanted = sorted(ids)
        chunks = [wanted[start:][:_CHUNK] for start in range(0, len(wanted), _CHUNK)]
        return all(_ask(["scancel", "--quiet", *chunk]) is not None for chunk in chunks)


def sbatch_script(folder: Path, name: str, options: Mapping[str, Any], n_runs: int = 1) -> str:
    """The script that :meth:`Slurm.submit` would hand to sbatch, to the letter."""
    executor = _Submission.of(folder, name, options)
    if n_runs > 1:
        executor.parameters["map_count"] = n_runs
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def place_pickle(folder: Path, job_id: str) -> None:
    """Put the file in place without which a job waits in vain.

    submitit does so right after sbatch; a controller that was killed in between has not.
    """
    place = submitit.core.utils.JobPaths(folder, job_id).submitted_pickle
    waiting = [path for path in folder.glob("*.pkl") if re.fullmatch(r"[0-9a-f]{32}", path.stem)]
    if len(waiting) == 1 and not place.exists():
        waiting[0].replace(place)


class _Submission(submitit.SlurmExecutor):  # type: ignore[misc]
    """submitit's executor, which can write its script also where there is no Slurm."""

    @classmethod
    def of(cls, folder: Path, name: str, options: Mapping[str, Any]) -> _Submission:
        native = slurm_options(options)
        python = native.pop("python", None) or PYTHON
        executor = cls(folder, max_num_timeout=MAX_TIMEOUTS, python=python)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                executor.update_parameters(job_name=name, **native)
        except (TypeError, ValueError) as error:
            raise SweepFileError(f"executor_options for slurm: {error}") from None
        return executor

    @classmethod
    def affinity(cls) -> int:
        return 2


def _ask(*parts: Sequence[str], nothing: str | None = None) -> str | None:
    """A command's output; None where it fails. An error with the words ``nothing`` is no output."""
    command = [word for part in parts for word in part]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode != 0:
        return "" if nothing is not None and nothing in answer.stderr else None
    return answer.stdout


def _read_table(answer: str) -> dict[str, SlurmState]:
    """Lines of ``id|state|nodes``, with the ids of array elements as submitit writes them."""
    states = {}
    for line in answer.splitlines():
        job_id, state, node, reason = [*line.strip().split("|"), ""][:4]
        named = node if node and not node.startswith("None") else None
        states[job_id] = SlurmState(state, named, "" if reason == "None" else reason)
    return states


def _numbers(job_id: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", job_id)]
