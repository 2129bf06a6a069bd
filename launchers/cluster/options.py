"""The names of ``executor_options``: submitit's, with or without the prefix ``slurm_``.

Those that all of submitit's executors know are ``timeout_min``, ``mem_gb``, ``nodes``,
``tasks_per_node``, ``cpus_per_task``, ``gpus_per_node`` and ``stderr_to_stdout``. Slurm's own are
the parameters of submitit's ``SlurmExecutor``: ``partition``, ``account``, ``qos``, ``mem``,
``exclude``, ``constraint``, ``gres``, ``setup``, ``additional_parameters`` and others; and
``python``, the command that starts Python where that is not this one, such as in a container.
"""

from __future__ import annotations

import difflib
import math
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from submitit import AutoExecutor
from submitit.slurm.slurm import SlurmExecutor

# -P: nothing in the working directory takes the place of a module that the job needs.
PYTHON = f"{shlex.quote(sys.executable)} -P"

DEFAULT_TIMEOUT_MIN = 24 * 60

_PREFIX = "slurm_"
_ANY: dict[str, type] = {
    name: kind for name, kind in AutoExecutor._typed_parameters().items() if name != "name"
}
_SLURM = SlurmExecutor._valid_parameters() - {"job_name", "num_gpus"} | {"python"}
_LOCAL = {"timeout_min", "gpus_per_node", "tasks_per_node", "nodes", "stderr_to_stdout"}
_LOCAL |= {"setup", "signal_delay_s", "visible_gpus"}
# Of none of these there can be less than so much: without time or memory a job waits for ever.
_LEAST = {
    **dict.fromkeys(("nodes", "tasks_per_node", "ntasks_per_node", "cpus_per_task"), 1),
    "gpus_per_node": 0,
    "gpus_per_task": 0,
    "signal_delay_s": 0,
}
_POSITIVE = {"timeout_min", "time", "mem_gb"}


def check_options(options: Mapping[str, Any], where: str) -> None:
    """Refuse what submitit does not know.

    Raises:
        ValueError: names the option, where it stands, and what may have been meant.
    """
    known = {*_ANY, *_SLURM, *_LOCAL}
    for name, value in options.items():
        plain = name.removeprefix(_PREFIX)
        if plain not in known:
            close = difflib.get_close_matches(plain, known, n=1)
            meant = f", did you mean {close[0]!r}?" if close else f"; known: {sorted(known)}"
            raise ValueError(f"unknown option {name!r} in {where}{meant}")
        kind = _ANY.get(plain)
        if kind is not None and not isinstance(value, (int, float) if kind is float else kind):
            raise ValueError(f"{where}.{name} is {value!r}, expected {kind.__name__}")
        is_number = isinstance(value, (int, float))
        if is_number and (isinstance(value, bool) or not math.isfinite(value)):
            if plain in {*_LEAST, *_POSITIVE}:
                raise ValueError(f"{where}.{name} is {value!r}, expected a number")
        elif is_number and value < _LEAST.get(plain, -math.inf):
            raise ValueError(f"{where}.{name} is {value!r}, expected at least {_LEAST[plain]}")
        elif is_number and plain in _POSITIVE and value <= 0:
            raise ValueError(f"{where}.{name} is {value!r}, expected more than 0")


def slurm_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """In the words of submitit's ``SlurmExecutor``, ``python`` among them."""
    words = {"timeout_min": DEFAULT_TIMEOUT_MIN, **options}
    plain = {name: value for name, value in words.items() if not name.startswith(_PREFIX)}
    plain |= {
        name.removeprefix(_PREFIX): value
        for name, value in words.items()
        if name.startswith(_PREFIX)
    }
    names = SlurmExecutor._equivalence_dict()
    shared = {name: value for name, value in plain.items() if name in _ANY}
    if "mem_gb" in shared:
        memory_gb = shared.pop("mem_gb")
        shared_mem = {"mem": f"{round(memory_gb * 1024)}MB"}
    else:
        shared_mem = {}
    own = {name: value for name, value in plain.items() if name not in _ANY}
    return {names.get(name, name): value for name, value in shared.items()} | shared_mem | own


def n_gpus(options: Mapping[str, Any]) -> int | None:
    """GPUs that are asked for on each node; None where the options do not say."""
    number = slurm_options(options).get("gpus_per_node")
    return number if isinstance(number, int) else None


def n_tasks(options: Mapping[str, Any]) -> int:
    """Tasks of a job, over all of its nodes."""
    native = slurm_options(options)
    return int(native.get("nodes", 1)) * int(native.get("ntasks_per_node", 1))


def local_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that mean something to local processes."""
    known = {name: value for name, value in options.items() if name in _LOCAL}
    return {"timeout_min": DEFAULT_TIMEOUT_MIN, **known}
