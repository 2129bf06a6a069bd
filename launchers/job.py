"""The job protocol: what a training function is given, and what it gives back.

A training function is any importable ``train(params, job)``. It returns a :class:`Result`, or a
mapping with at least ``output`` and ``cost``, and raises :class:`BadConfigurationError` when the
configuration is at fault. Any other exception counts as the configuration's fault too, except
those that say the machine broke.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class BadConfigurationError(Exception):
    """The configuration cannot be trained (divergence, out of memory): a failure, not a result.

    Args:
        reason: in a few words, for the table of failures.
        cost: what the attempt spent before it failed, in the sweep's unit of cost.
    """

    def __init__(self, reason: str, cost: float | None = None) -> None:
        super().__init__(reason, cost)
        self.reason = reason
        self.cost = cost

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True)
class Job:
    """What a training function is given besides its parameters.

    Attributes:
        folder: this attempt's own folder, for logs and scratch.
        shared_folder: one folder for all jobs of the sweep, for prepared data. Jobs run at the
            same time: whoever writes here takes a lock.
        seed: the seed of this trial; the same in every attempt at it.
        settings: the ``settings`` of the sweep file, for the function alone to interpret.
    """

    folder: Path
    shared_folder: Path
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


class Result(BaseModel):
    """A finished run.

    Attributes:
        output: the objective, as measured (lower is better unless the sweep says otherwise).
        cost: what the run spent, in the sweep's unit (seconds of training by default).
        metrics: everything else worth keeping, as JSON: evaluations, FLOPs, environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: float
    cost: float
    metrics: dict[str, Any] = {}
