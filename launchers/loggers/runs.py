"""What is written elsewhere: a trial as far as it has come, and what the sweep has found so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from carbs.pareto import pareto_front
from carbs.records import Direction
from carbs.search_space import SearchSpace
from carbs.study import CURVE, FAILURE, FORGOTTEN, PREDICTED, STOPPED, flatten, unflatten

# Curves are drawn over whole steps: thousandths of the run.
STEPS = 1000
Plain = bool | int | float | str
Point = tuple[float, float, float]


@dataclass(frozen=True)
class TrialRun:
    """A trial that has ended, or is under way.

    Attributes:
        state: ``running``, ``finished``, ``failed``, ``stopped`` (early), or ``lost`` to a machine.
        params: a mixture has an entry for each component, ``mix.code``.
        results: numbers: ``output`` and ``cost`` as far as they are known, and what was predicted.
        metrics: what the function returned besides; nested ones as ``evaluations.accuracy``.
        curve: progress in (0, 1], output and cost at each report.
        reason: why there is no result.
        started, ended: Unix time; None for what has not been.
    """

    number: int
    state: str
    params: dict[str, Plain]
    results: dict[str, float]
    metrics: dict[str, Plain] = field(default_factory=dict)
    curve: list[Point] = field(default_factory=list)
    reason: str | None = None
    started: float | None = None
    ended: float | None = None

    @classmethod
    def of(cls, trial: FrozenTrial, space: SearchSpace) -> TrialRun | None:
        """A trial as the study holds it; None where there is nothing to tell of it yet."""
        params = unflatten(space, trial.params)
        attributes = trial.user_attrs
        if params is None or not (trial.state.is_finished() or CURVE in attributes):
            return None
        failure, stopped = attributes.get(FAILURE, {}), attributes.get(STOPPED, {})
        state = {
            TrialState.RUNNING: "running",
            TrialState.COMPLETE: "finished",
            TrialState.PRUNED: "stopped",
        }.get(trial.state, "lost" if FORGOTTEN in attributes else "failed")
        spent = failure.get("cost", stopped.get("spent"))
        output, cost = trial.values or (None, spent)
        predicted = attributes.get(PREDICTED, {})
        results = {
            "output": output,
            "cost": cost,
            "forecast_output": stopped.get("output"),
            "predicted_output": predicted.get("predicted_output"),
            "predicted_cost": predicted.get("predicted_cost"),
        }
        return cls(
            number=trial.number,
            state=state,
            params=flatten(params),
            results={key: float(value) for key, value in results.items() if value is not None},
            metrics=dict(_flat(attributes.get("metrics", {}))),
            curve=[(float(p), float(o), float(c)) for p, o, c in attributes.get(CURVE, [])],
            reason=failure.get("reason", attributes.get(FORGOTTEN)),
            started=_timestamp(trial.datetime_start),
            ended=_timestamp(trial.datetime_complete),
        )

    @property
    def has_ended(self) -> bool:
        """Whether this is all that there will be of it."""
        return self.state != "running"

    def goes_on(self, written: list[Point]) -> bool:
        """Whether the curve continues what is written; it does not where the trial began again."""
        return self.n_same(written) == len(written)

    def n_same(self, written: list[Point]) -> int:
        """How many points of the curve are written already."""
        pairs = enumerate(zip(self.curve, written, strict=False))
        n_common = min(len(self.curve), len(written))
        return next((i for i, (point, before) in pairs if point != before), n_common)


@dataclass(frozen=True)
class Summary:
    """What a sweep has found so far.

    Attributes:
        facts: of the sweep: its parameters, limits and units.
        counts: of trials by state.
        results: numbers: the best output, what was spent, and of the check run what was predicted
            and measured.
        front: the trials that no other beats in both cost and output, cheapest first.
        report: the page, where there is one.
    """

    facts: dict[str, Any]
    counts: dict[str, int]
    results: dict[str, float]
    front: list[TrialRun]
    report: Path | None = None

    @classmethod
    def of(
        cls,
        trials: Sequence[TrialRun],
        direction: Direction,
        facts: Mapping[str, Any],
        check: Mapping[str, Any] | None = None,
        report: Path | None = None,
    ) -> Summary:
        """Of the trials of a sweep, those aside that the user has dropped."""
        finished = [trial for trial in trials if trial.state == "finished"]
        sign = 1 if direction == "minimize" else -1
        outputs = np.array([sign * trial.results["output"] for trial in finished])
        costs = np.array([trial.results["cost"] for trial in finished])
        front = [finished[i] for i in pareto_front(costs, outputs)] if finished else []
        results = {"spent": sum(trial.results.get("cost", 0.0) for trial in trials)}
        if front:
            results |= {"best_output": front[-1].results["output"]}
            results |= {"best_cost": front[-1].results["cost"]}
        results |= {
            f"check.{key}": float(value)
            for key, value in (check or {}).items()
            if key.endswith(("_output", "_cost")) and value is not None
        }
        states = [trial.state for trial in trials]
        return cls(
            facts=_finite(dict(facts)),
            counts={state: states.count(state) for state in dict.fromkeys(states)},
            results=results,
            front=front,
            report=report if report is not None and report.exists() else None,
        )

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """The front: names of columns, and a row for each of its trials."""
        names = list(dict.fromkeys(name for trial in self.front for name in trial.params))
        rows = [
            [
                trial.number,
                trial.results["cost"],
                trial.results["output"],
                *(trial.params.get(name) for name in names),
            ]
            for trial in self.front
        ]
        return ["trial", "cost", "output", *names], rows


def _finite(value: Any) -> Any:
    """Without bounds that are infinite, for which JSON has no word."""
    if isinstance(value, dict):
        return {
            key: _finite(entry)
            for key, entry in value.items()
            if not isinstance(entry, float) or np.isfinite(entry)
        }
    return [_finite(entry) for entry in value] if isinstance(value, list) else value


def _timestamp(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Plain]]:
    flat: list[tuple[str, Plain]] = []
    for key, value in metrics.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat += _flat(value, f"{name}.")
        elif value is not None:
            flat.append((name, value if isinstance(value, (bool, int, float, str)) else str(value)))
    return flat
