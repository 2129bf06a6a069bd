"""Plans from searches of random worlds, beside what anyone can do without a plan.

    python benchmarks/plans.py --worlds 48 --half report
    CARBS_DATA=... python benchmarks/plans.py --published --seeds 8
    python benchmarks/plans.py --worlds 48 --half report --curves
    python benchmarks/plans.py --worlds 48 --half report --wasteful

Each world (``random_worlds.py``) is searched once, with 100 trials up to its cap; then a run is
planned at 10, 30 and 100 times the cap and judged by its true loss. Worlds whose bounds allow no
such run are left out at that factor, and all-discrete ones altogether.

    plan              of ``carbs.analysis.plan``
    cost known        the same, told ``N * D`` (but nothing else of it) as the space's ``cost``
    best run, scaled  the run with the lowest loss, N and D grown alike
    front's lines     each parameter's straight line in log cost through the Pareto front, continued
    right sizes       the best run's hyperparameters with the best N and D for that cost: an oracle

With ``--wasteful`` small models leave the machine idle: a token costs as ``N + k N^p``, in units of
the centre's, with k from .1 to 10 and p up to .7.

With ``--published`` it is the tasks of ``tasks.py`` whose sizes are searched: the cap is lowered by
a factor, and the run is planned at what it was before.

Regret is in percent of the best possible loss at that cost. A run that cannot be trained (past a
cliff, or too large for a memory whose limit the search may not have met) counts as failed, and
not in the regret. ``same cost`` is the share within 10% of what was asked, without noise;
``holds`` are the shares of the 90% intervals that hold the true loss and a measured cost; ``width``
is the median of the loss's, in percent of it.

With ``--curves`` it is the curves along the front, inside the sweep: the share of each parameter's
bands, at nine costs, that hold the true optimum there, rounded as the parameter is.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from random_worlds import HALVES, world
from rich.console import Console
from rich.table import Table
from search import THREADS, Ours, search, start_worker
from tasks import TASKS, Task

from carbs import CARBS
from carbs.analysis import fit_front, hyperparameter_curves, plan
from carbs.pareto import pareto_front
from carbs.search_space import SearchSpace
from carbs.spaces import ChoiceSpace, FloatArray, NumericSpace
from carbs.study import flatten

FACTORS = (10.0, 30.0, 100.0)
LOWERED = {"synthetic": 30.0, "step-law": 10.0}
N_TRIALS = 100
# Exponents in cost of what grows with it, alike.
ALIKE: tuple[dict[str, float], ...] = (
    {"width": 1 / 6, "depth": 1 / 6, "D": 1 / 2},
    {"N": 1 / 2, "D": 1 / 2},
    {"D": 1.0},
)
SIZES = ("N", "D", "width", "depth")
KNOWN_COSTS = {"width": "width**2 * depth * D", "N": "N * D"}

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """Of one planned run; what no interval was given for is None."""

    regret: float
    fails: bool
    has_cost: bool
    holds: bool | None = None
    cost_holds: bool | None = None
    width: float | None = None


def fitting(space: SearchSpace, values: Values) -> dict[str, Any]:
    """The nearest values within the bounds."""
    found = dict(values)
    for param in space.params:
        if isinstance(param.space, NumericSpace) and param.name in found:
            low, high = param.space.limits()
            x = min(max(found[param.name], low), high)
            found[param.name] = round(x) if param.space.is_integer else x
    return found


Outcomes = dict[tuple[str, float], Outcome]


def scaled(optimizer: CARBS, cost: float) -> dict[str, Any]:
    run = min(optimizer.observations, key=lambda run: run.output)
    exponents = next(found for found in ALIKE if set(found) <= set(run.params))
    grown = {name: run.params[name] * (cost / run.cost) ** e for name, e in exponents.items()}  # type: ignore[operator]
    return fitting(optimizer.space, {**run.params, **grown})


def lines(optimizer: CARBS, cost: float) -> Values:
    space, runs = optimizer.space, optimizer.observations
    Z = space.encode_all([run.params for run in runs])
    log_costs = np.log([run.cost for run in runs])
    losses = np.array([run.output for run in runs])
    front = pareto_front(log_costs, losses)
    A = np.stack([np.ones(len(front)), log_costs[front]], axis=1)
    z = np.array([1.0, math.log(cost)]) @ np.linalg.lstsq(A, Z[front], rcond=None)[0]
    best = Z[np.argmin(losses)]
    for param in space.params:
        if isinstance(param.space, ChoiceSpace):
            z[space.slices[param.name]] = best[space.slices[param.name]]
    return space.decode(space.snap(z[None])[0])


def judged(number: int, seed: int, is_wasteful: bool = False) -> Outcomes:
    """All plans of one world's search, by their name and factor."""
    task = world(number, is_wasteful)
    if task.optimum is None:
        return {}
    bests = {factor: task.optimum(factor * task.cap) for factor in FACTORS}
    return plans_of(task, seed, {factor: best for factor, best in bests.items() if best})


def judged_published(name: str, seed: int) -> Outcomes:
    """As those, of a task whose cap is lowered to be planned at again."""
    task, factor = TASKS[name](), LOWERED[name]
    lowered = replace(task, cap=task.cap / factor, budget=task.budget / factor)
    return plans_of(lowered, seed, {factor: ({}, float(task.front[1][-1]))})


def searched(task: Task, seed: int) -> CARBS:
    ours = Ours(replace(task, told={"n_trials": N_TRIALS}), seed)
    search(task, ours, 1000 + seed, 1, N_TRIALS)
    return ours.optimizer


def bands_held(number: int, seed: int) -> dict[str, list[bool]]:
    """By curve of one world's search: whether its band holds the optimum, at each cost."""
    task, found = world(number), {}
    if task.optimum is None:
        return {}
    optimizer = searched(task, seed)
    space = optimizer.space
    for curve in hyperparameter_curves(
        fit_front(space, optimizer.observations, optimizer.failures)
    ):
        held = []
        for cost, low, high in zip(curve.costs, curve.low, curve.high, strict=True):
            best = task.optimum(cost)
            if best is None or math.isnan(low):
                continue
            values = flatten(fitting(space, best[0]))
            if curve.name in values:
                slack = 1e-6 * max(abs(low), abs(high))
                held.append(bool(low - slack <= values[curve.name] <= high + slack))
        found[curve.name] = held
    return found


def plans_of(task: Task, seed: int, bests: Mapping[float, tuple[Values, float]]) -> Outcomes:
    """Of one search: at each factor of the cap, where the best values and their loss are known."""
    optimizer = searched(task, seed)
    runs, params = (optimizer.observations, optimizer.failures), optimizer.space.params
    names = [param.name for param in params]
    cost_known = next((text for name, text in KNOWN_COSTS.items() if name in names), "D")
    fronts = {
        "plan": fit_front(optimizer.space, *runs),
        "cost known": fit_front(SearchSpace(params, task.constraints, cost_known), *runs),
    }
    rng = np.random.default_rng([seed, *task.name.encode()])
    found = {}
    for factor, (values, best_loss) in bests.items():
        cost, normal = factor * task.cap, rng.standard_normal()

        def outcome(planned: Values, cost: float = cost, best_loss: float = best_loss) -> Outcome:
            regret = 100 * (task.loss(planned) / best_loss - 1)
            return Outcome(regret, task.fails(planned), abs(task.cost(planned) / cost - 1) < 0.1)

        run = scaled(optimizer, cost)
        right = {name: values[name] for name in SIZES if name in values}
        found["best run, scaled", factor] = outcome(run)
        found["front's lines", factor] = outcome(lines(optimizer, cost))
        if right:
            found["right sizes", factor] = outcome(fitting(optimizer.space, {**run, **right}))
        for name, known in fronts.items():
            planned = plan(known, cost)
            own, loss = outcome(planned.params), task.loss(planned.params)
            low, high = planned.output_interval
            measured = task.cost(planned.params) * math.exp(task.cost_noise * normal)
            found[name, factor] = Outcome(
                own.regret,
                own.fails,
                own.has_cost,
                low <= loss <= high,
                planned.cost_interval[0] <= measured <= planned.cost_interval[1],
                100 * (high - low) / loss,
            )
    return found


def row(outcomes: Sequence[Outcome], plans: Sequence[Outcome]) -> list[str]:
    """Of one way of planning; ``plans`` are the plan's outcomes in the same worlds."""
    trained = np.array([o.regret for o in outcomes if not o.fails])
    both = [(o.regret, p.regret) for o, p in zip(outcomes, plans, strict=True)]
    kept = [not (o.fails or p.fails) for o, p in zip(outcomes, plans, strict=True)]
    pairs: FloatArray = np.array(both)[kept]
    change = pairs[:, 1] - pairs[:, 0]
    spread = (trained.mean(), np.median(trained), np.quantile(trained, 0.9)) if len(trained) else ()
    cells = [
        " / ".join(f"{regret:.1f}" for regret in spread),
        f"{np.mean([o.fails for o in outcomes]):.0%}",
        f"{np.mean([o.has_cost for o in outcomes]):.0%}",
        *("", "", ""),
    ]
    if outcomes[0].holds is not None:
        holds = np.mean([o.holds for o in outcomes])
        cost_holds = np.mean([o.cost_holds for o in outcomes])
        width = float(np.median([o.width for o in outcomes if o.width is not None]))
        cells[4:] = [f"{holds:.0%} {cost_holds:.0%}", f"{width:.1f}"]
    if outcomes is not plans and len(change) > 1:
        error = change.std(ddof=1) / math.sqrt(len(change))
        cells[3] = f"{change.mean():+.1f} ± {error:.1f}, {np.mean(change < -1e-9):.0%}"
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=48)
    parser.add_argument("--half", choices=list(HALVES), default="report")
    measured = parser.add_mutually_exclusive_group()
    for name in ("--published", "--curves", "--wasteful"):
        measured.add_argument(name, action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parsed = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    numbers = [2 * i + HALVES[parsed.half] for i in range(parsed.worlds)]
    asked: list[Any] = list(LOWERED) if parsed.published else numbers
    in_worlds = partial(judged, is_wasteful=parsed.wasteful)
    call: Callable[..., Outcomes] = judged_published if parsed.published else in_worlds
    calls = [(one, seed) for one in asked for seed in range(parsed.seeds)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parsed.jobs, context, start_worker) as pool:
        if parsed.curves:
            print_bands(list(pool.map(bands_held, *zip(*calls, strict=True))))
            return
        results = list(pool.map(call, *zip(*calls, strict=True)))
    if parsed.published:
        for name, factor in LOWERED.items():
            here = [found for (one, _), found in zip(calls, results, strict=True) if one == name]
            print_table(f"{name}, {factor:g} times the cap, {len(here)} seeds", here, factor)
        return
    for factor in FACTORS:
        here = [found for found in results if ("plan", factor) in found]
        title = f"at {factor:g} times the cap, {len(here)} searches ({parsed.half})"
        print_table(title, here, factor)


def print_bands(found: Sequence[Mapping[str, Sequence[bool]]]) -> None:
    """Of all curves, of those of sizes and of shares; and of the worlds that did worst."""
    kinds: dict[str, Callable[[str], bool]] = {
        "all": lambda name: True,
        "sizes": lambda name: name in SIZES,
        "shares of a mix": lambda name: "." in name,
        "others": lambda name: name not in SIZES and "." not in name,
    }
    for kind, is_one in kinds.items():
        worlds = [[x for name in one if is_one(name) for x in one[name]] for one in found]
        shares = [float(np.mean(held)) for held in worlds if held]
        every, worst = np.mean([x for held in worlds for x in held]), np.quantile(shares, 0.1)
        print(f"{kind}: {every:.1%}; worst tenth of {len(shares)} worlds {worst:.0%}")


def print_table(title: str, results: Sequence[Outcomes], factor: float) -> None:
    table = Table(title=title)
    for name in ("", "regret % mean / median / p90", "failed", "same cost"):
        table.add_column(name)
    for name in ("plan - this, plan ahead", "holds", "width %"):
        table.add_column(name)
    plans = [found["plan", factor] for found in results]
    for name in ("plan", "cost known", "best run, scaled", "front's lines", "right sizes"):
        if (name, factor) in results[0]:
            outcomes = plans if name == "plan" else [found[name, factor] for found in results]
            table.add_row(name, *row(outcomes, plans))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
