"""Where a job's process finds itself: which task of which job it is, on which node, until when."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from datetime import datetime

import psutil


def task(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which task of its job this process is, from 0, and how many there are.

    As submitit, torchrun or Slurm's srun say; a process that none of them has started is alone.
    """
    for rank, size in _TASKS:
        if rank in environment and size in environment:
            return int(environment[rank]), int(environment[size])
    return 0, 1


# Not SLURM_NTASKS: it is there in a batch script as well, which is one process.
_TASKS = (
    ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS"),
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def node_name() -> str:
    """As the scheduler knows it: emulated nodes share one hostname."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def find_deadline() -> float | None:
    """Unix time at which the scheduler will kill this process, where that can be found out."""
    if "SLURM_JOB_END_TIME" in os.environ:
        return float(os.environ["SLURM_JOB_END_TIME"])
    if "SLURM_JOB_ID" in os.environ:
        command = ["squeue", "--noheader", "--jobs", os.environ["SLURM_JOB_ID"], "--format", "%e"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            return datetime.fromisoformat(answer.stdout.strip()).timestamp()
        except (OSError, subprocess.SubprocessError, ValueError):  # such as "NONE"
            return None
    if "SUBMITIT_LOCAL_TIMEOUT_S" in os.environ:
        started = psutil.Process().create_time()
        return started + float(os.environ["SUBMITIT_LOCAL_TIMEOUT_S"])
    return None


def job_id() -> str | None:
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array is not None:
        return f"{array}_{element}"
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("SUBMITIT_LOCAL_JOB_ID")
