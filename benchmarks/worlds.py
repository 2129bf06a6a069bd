"""Random training tasks, wider than anything the search was made for, with their best fronts known.

    python benchmarks/worlds.py --worlds 60 --half report --jobs 2
    python benchmarks/worlds.py --worlds 60 --half choose --change exponent=0.3 --change margin=2

A world is drawn from its number alone. Even numbers are the half on which choices are made
(``choose``), odd ones the half on which they are reported (``report``). ``--change`` runs today's
code with constants of the search replaced beside today's code, in pairs.

Notation
--------
N, D      parameters, tokens
loss      E + A (N/N_0)^-a + B (D/D_0)^-b + (reducible part at the centre) * sum_i h_i p(u_i) + ...
u_i       distance of hyperparameter i from its optimum, in its own true scale; the optimum moves as
          a power of N and D; p is a bowl, steeper on one side, that flattens far away
front     every p is zero at the optimum, so that the best loss at a cost is a minimum over N alone
          (over the categories too), taken on a fine grid; where N is made of width and depth it is
          reached but for their rounding

The scores are those of ``tasks.py``, at 25, 50 and 100 trials.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table
from search import OPTIMIZERS, THREADS, Search, search, start_worker
from tasks import N_FRONT, Task

from carbs import (
    ChoiceSpace,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Param,
    acquisition,
    gaussian_process,
    optimizer,
    surrogate,
)
from carbs.spaces import FloatArray

N_TRIALS = (25, 50, 100)
HALVES = {"choose": 0, "report": 1}
# What --change can replace.
CONSTANTS = {
    "exponent": (optimizer, "_COST_EXPONENT"),
    "half_life": (optimizer, "_HALF_LIFE"),
    "initial": (optimizer, "_INITIAL_RADIUS"),
    "margin": (optimizer, "_TRUST_MARGIN"),
    "growth": (optimizer, "_TRUST_GROWTH"),
    "straying": (surrogate, "_STRAYING"),
    "beyond": (acquisition, "_BEYOND_CAP"),
    "trend": (gaussian_process, "_TREND"),
}


@dataclass(frozen=True)
class Axis:
    """A hyperparameter that does not change the cost.

    Attributes:
        param: as the search sees it.
        height: what a distance of one true scale costs, in shares of the reducible loss.
        width: the true scale, in decades (of the odds for fractions), or in the unit of a line.
        best, by_n, by_d: the optimum, warped, is ``best + by_n log10(N/N_0) + by_d log10(D/D_0)``,
            at the nearest value that the parameter can have: so it can always be reached.
        skew: how much steeper it is above the optimum.
        plateau: the distance beyond which it flattens.
        warp: of a value, to where ``width`` is measured.
    """

    param: Param
    height: float
    width: float
    best: float
    by_n: float
    by_d: float
    skew: float
    plateau: float
    warp: Callable[[float], float]
    unwarp: Callable[[float], float]

    def optimum(self, n: float, d: float) -> float:
        space = self.param.space
        x = self.unwarp(self.best + self.by_n * n + self.by_d * d)
        low, high = space.limits()
        return float(np.clip(round(x) if space.is_integer else x, low, high))

    def distance(self, value: float, n: float, d: float) -> float:
        u = (self.warp(value) - self.warp(self.optimum(n, d))) / self.width
        return u * self.skew if u > 0 else u

    def bowl(self, u: float) -> float:
        return self.height * u**2 / (1 + (u / self.plateau) ** 2)


def world(number: int) -> Task:
    """The task of that number."""
    rng = np.random.default_rng([20261126, number])
    for _ in range(200):
        task = _draw(rng, f"world-{number}")
        if task is not None:
            return task
    raise RuntimeError(f"world {number}: no centre that can be trained in 200 draws")


def _draw(rng: np.random.Generator, name: str) -> Task | None:
    """None where the centre cannot be trained, or is nearly the best there is."""
    scaling = str(rng.choice(["N, D", "width, depth, D", "D", "seconds"]))
    n_0, d_0 = 10 ** rng.uniform(5, 8), 10 ** rng.uniform(7, 10)
    irreducible, part = rng.uniform(0.3, 2.0), rng.uniform(0.3, 2.0)
    a, b = rng.uniform(0.15, 0.5), rng.uniform(0.15, 0.5)
    share = rng.uniform(0.3, 0.7)
    reach = 10 ** rng.uniform(1.5, 3.5)  # of the cap over the centre's cost
    width_0 = 16 * 2 ** int(rng.integers(1, 5))
    depth_0 = int(rng.integers(2, 9))
    misstated = 1.0 if rng.random() < 0.5 else None

    def scale(true: float) -> float:
        return true * (misstated or 10 ** rng.uniform(-1, 1))

    def bounds(low: float, high: float, is_log: bool = True) -> dict[str, float]:
        kind = rng.choice(["tight", "wide", "none"])
        more = 0.2 if kind == "tight" else 1.5
        if not is_log:
            low, high = low - more * (high - low), high + more * (high - low)
            return {} if kind == "none" else {"min": low, "max": high}
        return {} if kind == "none" else {"min": low * 10**-more, "max": high * 10**more}

    # What drives the cost. Its bounds, where there are any, leave room for the best at the cap.
    params: list[Param] = []
    if scaling in ("N, D", "seconds"):
        params.append(Param("N", LogSpace(scale=scale(0.5), **bounds(n_0, n_0 * reach)), n_0))
    elif scaling == "width, depth, D":
        widths = bounds(width_0, width_0 * math.sqrt(reach))
        space = LogSpace(
            scale=scale(0.3), is_integer=True, rounding_factor=8, **_at_least(widths, 8)
        )
        params.append(Param("width", space, width_0))
        depths = _at_least(bounds(depth_0, depth_0 * math.sqrt(reach)), 1)
        params.append(
            Param("depth", LogSpace(scale=scale(0.3), is_integer=True, **depths), depth_0)
        )
    params.append(Param("D", LogSpace(scale=scale(0.5), **bounds(d_0, d_0 * reach)), d_0))
    aspect = rng.uniform(1.0, 2.0)
    n_center = 12 * width_0**2 * depth_0 if scaling == "width, depth, D" else n_0
    overhead = 10 ** rng.uniform(-1, 1) if scaling == "seconds" else 0.0

    def size(values: Mapping[str, Any]) -> tuple[float, float]:
        """log10 of N and D, over the centre's."""
        if scaling == "width, depth, D":
            n = math.log10(12 * values["width"] ** 2 * values["depth"] / n_center)
        else:
            n = math.log10(values.get("N", n_0) / n_0)
        return n, math.log10(values["D"] / d_0)

    axes = [_axis(rng, i, scale, bounds) for i in range(int(rng.integers(1, 14)))]
    params += [axis.param for axis in axes]
    smooth = [axis for axis in axes if axis.height > 0]
    pairs = []
    if len(smooth) > 1 and rng.random() < 0.5:
        pairs = [(smooth[0], smooth[1], rng.uniform(-0.7, 0.7))]

    categories: FloatArray = np.zeros((1, 2))
    if rng.random() < 0.5:
        n_choices = int(rng.integers(2, 6))
        # The level of each, and how it moves with compute: some are better small, some large.
        categories = np.stack(
            [rng.uniform(0, 0.25, n_choices), rng.normal(0, 0.05, n_choices)], axis=1
        )
        labels = [f"c{i}" for i in range(n_choices)]
        params.append(Param("kind", ChoiceSpace(labels), labels[int(rng.integers(n_choices))]))
    conditional: Axis | None = None
    if len(categories) > 1 and rng.random() < 0.5:
        conditional = _axis(rng, 99, scale, bounds, when={"kind": "c0"})
        params.append(conditional.param)

    mix: tuple[FloatArray, FloatArray, float] | None = None
    if rng.random() < 0.3:
        k = int(rng.integers(2, 9))
        names = [f"m{i}" for i in range(k)]
        best = rng.dirichlet(np.full(k, rng.uniform(0.5, 2.0)))
        drift = rng.normal(0, 0.15, k)
        mix = best, drift, rng.uniform(0.05, 0.6)
        space_ = MixtureSpace(names, scale=scale(1.0))
        params.append(Param("mix", space_, dict.fromkeys(names, 1 / k)))

    cliff: float | None = rng.uniform(0.3, 1.0) if rng.random() < 0.6 else None
    memory = rng.uniform(0.5, 1.0) if rng.random() < 0.3 and scaling != "D" else math.inf
    log_reach = math.log10(reach)
    noise, cost_noise = rng.choice([0.0, 0.002, 0.01, 0.02]), rng.choice([0.0, 0.03, 0.3])

    def bad_mix(weights: FloatArray, n: float, d: float) -> float:
        if mix is None:
            return 0.0
        best, drift, height = mix
        target = best * 10 ** (drift * (n + d) / 2)
        target = target / target.sum()
        return float(height * np.square(np.sqrt(weights) - np.sqrt(target)).sum())

    def law(n: Any, d: Any) -> Any:
        return irreducible + part * (share * 10 ** (-a * n) + (1 - share) * 10 ** (-b * d))

    def of_category(i: int, n: Any, d: Any) -> Any:
        return np.maximum(categories[i, 0] + categories[i, 1] * (n + d), 0.0)

    def loss(values: Mapping[str, Any]) -> float:
        n, d = size(values)
        distances = {axis.param.name: axis.distance(values[axis.param.name], n, d) for axis in axes}
        bad = sum(axis.bowl(distances[axis.param.name]) for axis in axes)
        for one, other, coupling in pairs:
            damped = (1 + (distances[one.param.name] / one.plateau) ** 2) * (
                1 + (distances[other.param.name] / other.plateau) ** 2
            )
            both = distances[one.param.name] * distances[other.param.name]
            bad += 2 * coupling * math.sqrt(one.height * other.height) * both / damped
        if scaling == "width, depth, D":
            center = math.log10(width_0 / depth_0)
            ratio = math.log10(values["width"] / values["depth"]) - center
            bad += 0.05 * (aspect * ratio) ** 2 / (1 + ratio**2)
        if "kind" in values:
            bad += float(of_category(int(values["kind"][1:]), n, d))
        if conditional is not None and conditional.param.name in values:
            bad += conditional.bowl(conditional.distance(values[conditional.param.name], n, d))
        if mix is not None:
            bad += bad_mix(np.array(list(values["mix"].values())), n, d)
        # Bad enough is as bad as having learnt nothing.
        return float(law(n, d) + part * 3 * math.tanh(max(bad, 0.0) / 3))

    def cost(values: Mapping[str, Any]) -> float:
        n, d = size(values)
        return float(overhead + 10 ** (n + d))

    def fails(values: Mapping[str, Any]) -> bool:
        n, d = size(values)
        if n > memory * log_reach:
            return True
        first = axes[0]
        if cliff is None or first.height == 0:
            return False
        u = first.distance(values[first.param.name], n, d) / first.skew
        return bool(u > cliff * 4 + 0.5)

    center = {p.name: p.search_center for p in params}
    if conditional is not None and center["kind"] != "c0":
        del center[conditional.param.name]
    cap = cost(center) * reach
    # The best at each cost: over N, and over the categories.
    limits = {p.name: (p.space.min, p.space.max) for p in params if p.name in ("N", "D")}

    def inside(name: str, x: FloatArray, x_0: float) -> FloatArray:
        low, high = limits.get(name, (0.0, math.inf))
        return np.asarray(
            (x >= math.log10(low / x_0) if low > 0 else True) & (x <= np.log10(high / x_0))
        )

    grid = np.linspace(-4, 5, 3601) if scaling != "D" else np.zeros(1)
    costs = np.geomspace(cost(center) * (0.3 if overhead < 0.5 else 1.0), cap, N_FRONT)
    losses = []
    for c in costs:
        d = math.log10(max(c - overhead, 1e-9)) - grid
        kept = inside("N", grid, n_0) & inside("D", d, d_0) & (grid <= memory * log_reach)
        n, d = grid[kept], d[kept]
        if not len(n):
            return None
        base = law(n, d)
        bad = np.min([of_category(i, n, d) for i in range(len(categories))], axis=0)
        losses.append(float(np.min(base + part * 3 * np.tanh(bad / 3))))
    worst = loss(center)
    if fails(center) or worst - losses[-1] < 0.1 * part:
        return None
    front = costs, np.minimum.accumulate(losses)
    return Task(
        name,
        params,
        loss,
        cost,
        fails,
        noise * losses[-1],
        cap,
        math.inf,
        front,
        "exact",
        cost_noise,
    )


def _at_least(bounds: dict[str, float], least: float) -> dict[str, float]:
    return {**bounds, "min": max(bounds["min"], least)} if bounds else {}


def _axis(
    rng: np.random.Generator,
    i: int,
    scale: Callable[[float], float],
    bounds: Callable[..., dict[str, float]],
    when: Mapping[str, str] | None = None,
) -> Axis:
    kind = str(rng.choice(["log", "log", "log", "linear", "logit", "integer"]))
    height = 0.0 if rng.random() < 0.25 else 10 ** rng.uniform(-2, -0.5)
    skew = 1.0 if rng.random() < 0.5 else rng.uniform(1.0, 3.0)
    plateau = rng.uniform(2, 8)
    off = float(np.clip(rng.normal(0, 0.7), -2, 2))
    by_n, by_d = (0.0, 0.0) if rng.random() < 0.4 else rng.uniform(-0.5, 0.3, 2)
    name = f"x{i}"
    if kind == "linear":
        best, width = rng.uniform(-5, 5), 10 ** rng.uniform(-1, 2)
        best *= width
        center = best + 2 * off * width
        space: Any = LinearSpace(
            scale=scale(width),
            **bounds(min(best, center) - width, max(best, center) + width, False),
        )
        by_n, by_d = by_n * width, by_d * width
        return Axis(
            Param(name, space, center, when),
            height,
            width,
            best,
            by_n,
            by_d,
            skew,
            plateau,
            float,
            float,
        )
    if kind == "logit":
        best, width = rng.uniform(-1.5, 1.5), rng.uniform(0.3, 1.0)
        center = float(np.clip(1 / (1 + 10 ** -(best + off)), 1e-3, 1 - 1e-3))
        space = LogitSpace(scale=scale(width))

        def odds(x: float) -> float:
            return math.log10(x / (1 - x))

        def fraction(u: float) -> float:
            return 1 / (1 + 10**-u)

        return Axis(
            Param(name, space, center, when),
            height,
            width,
            best,
            by_n,
            by_d,
            skew,
            plateau,
            odds,
            fraction,
        )
    width = rng.uniform(0.3, 1.0)
    best = rng.uniform(1, 3) if kind == "integer" else rng.uniform(-5, 1)
    center = 10 ** (best + off)
    low, high = 10 ** (min(best, best + off) - 1), 10 ** (max(best, best + off) + 1)
    if kind == "integer":
        center = max(round(center), 1)
        space = LogSpace(scale=scale(width), is_integer=True, **_at_least(bounds(low, high), 1))
    else:
        space = LogSpace(scale=scale(width), **bounds(low, high))
    return Axis(
        Param(name, space, center, when),
        height,
        width,
        best,
        by_n,
        by_d,
        skew,
        plateau,
        math.log10,
        lambda u: 10**u,
    )


def scores(task: Task, found: Search) -> list[float]:
    """hv at each number of trials, regret in percent, the share of the trials that failed."""
    row = []
    for n in N_TRIALS:
        ended = zip(found.tried[:n], found.observed[:n], strict=True)
        good = [values for values, loss in ended if loss < math.inf]
        row.append(task.hypervolume(good) if good else 0.0)
    best = found.tried[int(np.argmin(found.observed))]
    return [*row, task.regret(best), float(np.mean(np.isinf(found.observed)))]


@contextmanager
def changed(changes: Mapping[str, float]) -> Iterator[None]:
    """Constants of the search replaced, and the fits that were made with others forgotten."""
    for fitted in (surrogate._output_kernel, surrogate._cost_kernel, surrogate._success_kernel):
        fitted.cache_clear()
    with ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(
                patch.object(*CONSTANTS[name], type(getattr(*CONSTANTS[name]))(value))
            )
        yield


@dataclass(frozen=True)
class Run:
    scores: list[float]
    covered: list[tuple[bool, bool]]


def run(label: str, number: int, seed: int, in_flight: int, changes: Mapping[str, float]) -> Run:
    task = world(number)
    with changed(changes):
        optimizer_ = OPTIMIZERS[label](task, seed)
        found = search(task, optimizer_, 1000 + seed, in_flight, N_TRIALS[-1])
    return Run(scores(task, found), getattr(optimizer_, "covered", [])[20:])


def summary(rows: FloatArray) -> list[str]:
    """Mean and worst decile of each hv, the worst of the last, and mean and median regret."""
    cells = [f"{x.mean():.3f} / {np.quantile(x, 0.1):.3f}" for x in rows.T[:3]]
    regret = rows[:, 3]
    return [*cells, f"{rows[:, 2].min():.3f}", f"{regret.mean():.2f} / {np.median(regret):.2f}"]


def difference(rows: FloatArray, base: FloatArray) -> list[str]:
    """Paired: mean difference and its standard error of each score, and of the worst decile."""
    change = rows - base
    errors = change.std(axis=0, ddof=1) / math.sqrt(len(change))
    cells = [f"{m:+.3f} ± {e:.3f}" for m, e in zip(change.mean(axis=0)[:4], errors, strict=False)]
    tenth = np.quantile(rows[:, 2], 0.1) - np.quantile(base[:, 2], 0.1)
    return [*cells[:3], f"{tenth:+.3f}", cells[3]]


def _change(text: str) -> dict[str, float]:
    """``exponent=0.3,margin=2``"""
    pairs = (item.split("=") for item in text.split(","))
    return {name: float(value) for name, value in pairs}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--half", choices=list(HALVES), default="report")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=["carbs"])
    parser.add_argument("--change", type=_change, action="append", default=[], dest="changes")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="searches at once, one thread each")
    parsed = parser.parse_args(arguments)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    numbers = [2 * i + HALVES[parsed.half] for i in range(parsed.worlds)]
    variants: dict[str, tuple[str, dict[str, float]]] = {
        label: (label, {}) for label in parsed.optimizers
    }
    for changes in parsed.changes:
        variants[", ".join(f"{k}={v:g}" for k, v in changes.items())] = "carbs", changes
    table = Table("", "hv 25", "hv 50", "hv 100", "worst", "regret %", "covered")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parsed.jobs, context, start_worker) as pool:
        futures = {
            variant: [
                pool.submit(run, label, n, parsed.seed, parsed.in_flight, changes) for n in numbers
            ]
            for variant, (label, changes) in variants.items()
        }
        base: FloatArray | None = None
        for variant, ones in futures.items():
            runs = [one.result() for one in ones]
            rows = np.array([one.scores for one in runs])
            covered = [pair for one in runs for pair in one.covered]
            inside = " ".join(f"{x:.0%}" for x in np.mean(covered, axis=0)) if covered else ""
            table.add_row(variant, *summary(rows), inside)
            if base is not None:
                table.add_row("", *difference(rows, base), "")
            base = rows if base is None else base
            print(variant, *summary(rows), inside, flush=True)
    table.title = (
        f"{parsed.worlds} worlds ({parsed.half}), {parsed.in_flight} in flight: mean / worst "
        "decile; below, differences from the first row, of the worst decile in the column 'worst'"
    )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
