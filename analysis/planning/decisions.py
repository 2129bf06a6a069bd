"""Each number of a planned configuration: how well it is known, and what it matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.growth import growth_of
from carbs.analysis.front.hyperparameters import Curve
from carbs.analysis.front.model import decades_of_unit
from carbs.analysis.planning.reach import Reach
from carbs.spaces import FloatArray, LinearSpace, LogitSpace, LogSpace

# Within so many decades the cost is the same; a step that rounding or bounds undo is none.
_SAME_COST, _MOVED = 0.05, 1e-9


@dataclass(frozen=True)
class Decision:
    """One number of the configuration.

    Attributes:
        name, value: of the parameter.
        interval: where its law has the optimum at that cost; None where it has no law.
        beforehand: the power of the cost that its optimum was believed to grow with, by its role;
            None where nothing was.
        step: what is meant by a step: ``x2``, ``odds x2``, or its scale.
        lower, higher: how much worse the output is expected to be a step below and above, at the
            same cost; None where there is no such run.
    """

    name: str
    value: float
    interval: tuple[float, float] | None
    beforehand: float | None
    step: str
    lower: float | None
    higher: float | None


def decisions(
    expectation: Expectation, reach: Reach, z: FloatArray, cost: float, curves: Sequence[Curve]
) -> tuple[Decision, ...]:
    """Of every number in the configuration at ``z``, shape ``(d,)``, in the space's order.

    Args:
        expectation: of what runs measure.
        reach: that brings a run to the cost again, when a step has changed it.
        z: the planned configuration.
        cost: asked for.
        curves: of the front.
    """
    front = expectation.front
    params = front.space.decode(z)
    laws = {curve.name: curve for curve in curves if len(curve.lines)}
    known = growth_of(front.space, front.surface.cost.mean_exponents())
    found, steps = [], []
    for param in front.space.params:
        value, space = params.get(param.name), param.space
        if not isinstance(space, (LinearSpace, LogSpace, LogitSpace)) or value is None:
            continue
        i = front.space.slices[param.name].start
        size = 1.0 if isinstance(space, LinearSpace) else math.log10(2) / decades_of_unit(param)
        step = {"log": "x2", "logit": "odds x2"}.get(space.kind, f"{space.scale:g}")
        interval = None
        if param.name in laws:
            interval = laws[param.name].possible(cost, front.level)
        beforehand, _ = known.get(param.name, (None, None))
        found.append((param.name, float(value), interval, beforehand, step))  # type: ignore[arg-type]  # a number
        steps += [(i, -size), (i, size)]
    beside = np.tile(z, (len(steps), 1))
    held = np.zeros(beside.shape, dtype=bool)
    for row, (i, size) in enumerate(steps):
        beside[row, i] += size
        held[row, i] = True
    Z = np.concatenate([z[None], reach.at(beside, cost, held)])
    losses = expectation.score(Z)
    c = front.surface.cost.scale(Z)[0]
    there = (np.abs(c - c[0]) < _SAME_COST) & (np.abs(Z - z).max(axis=1) > _MOVED)
    changes = [
        float(loss - losses[0]) if has_cost else None
        for loss, has_cost in zip(losses, there, strict=True)
    ]
    return tuple(
        Decision(*fields, changes[1 + 2 * k], changes[2 + 2 * k]) for k, fields in enumerate(found)
    )
