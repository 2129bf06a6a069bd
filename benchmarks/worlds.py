"""Search quality in random worlds, and what constants of the search are worth there.

    python benchmarks/worlds.py --worlds 60 --half report --optimizers carbs "optuna TPE" random
    python benchmarks/worlds.py --worlds 60 --half choose --change exponent=0.3 --change margin=2

The worlds are those of ``random_worlds.py``. ``--change`` runs today's code with constants of the
search replaced beside today's code, in pairs. The scores are those of ``tasks.py``, at 25, 50 and
100 trials.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
from random_worlds import HALVES, world
from rich.console import Console
from rich.table import Table
from search import OPTIMIZERS, THREADS, Search, search, start_worker
from tasks import Task

from carbs import acquisition, allowance, gaussian_process, optimizer, surrogate
from carbs.spaces import FloatArray

N_TRIALS = (25, 50, 100)
# What --change can replace.
CONSTANTS = {
    "exponent": (allowance, "_COST_EXPONENT"),
    "half_life": (allowance, "_HALF_LIFE"),
    "initial": (optimizer, "_INITIAL_RADIUS"),
    "margin": (optimizer, "_TRUST_MARGIN"),
    "growth": (optimizer, "_TRUST_GROWTH"),
    "n_initial": (optimizer, "_N_INITIAL"),
    "straying": (surrogate, "_STRAYING"),
    "beyond": (acquisition, "_BEYOND_CAP"),
    "below": (acquisition, "_BELOW_CENTER"),
    "trend": (gaussian_process, "_TREND"),
    "curvature": (surrogate, "_CURVATURE"),
}


def scores(task: Task, found: Search) -> list[float]:
    """hv at each number of trials, regret in percent, the share of the trials that failed.

    Where there is a budget, at that share of it if it is reached earlier.
    """
    row = []
    for n_trials in N_TRIALS:
        share = n_trials / N_TRIALS[-1]
        n = min(n_trials, sum(spent <= share * task.budget + 1e-9 for spent in found.spent))
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


def limited(task: Task, number: int, limits: str, is_told: bool) -> Task:
    """With a budget of 3 to 30 runs at the cap where ``limits`` says so, beside 100 trials."""
    budget = task.cap * 10 ** np.random.default_rng([7, number]).uniform(0.5, 1.5)
    told: dict[str, Any] = {}
    if limits in ("trials", "both"):
        told["n_trials"] = N_TRIALS[-1]
    if limits in ("budget", "both"):
        task, told["budget"] = replace(task, budget=budget), budget
    return replace(task, told=told if is_told else {})


def run(
    label: str,
    number: int,
    seed: int,
    in_flight: int,
    changes: Mapping[str, float],
    limits: str = "none",
    is_told: bool = True,
) -> Run:
    task = limited(world(number), number, limits, is_told)
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
    parser.add_argument("--limits", choices=["none", "trials", "budget", "both"], default="none")
    parser.add_argument("--jobs", type=int, default=2, help="searches at once, one thread each")
    parsed = parser.parse_args(arguments)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    numbers = [2 * i + HALVES[parsed.half] for i in range(parsed.worlds)]
    variants: dict[str, tuple[str, dict[str, float]]] = {
        label: (label, {}) for label in parsed.optimizers
    }
    if parsed.limits != "none":
        variants["carbs, not told"] = "carbs", {}
    for changes in parsed.changes:
        variants[", ".join(f"{k}={v:g}" for k, v in changes.items())] = "carbs", changes
    table = Table("", "hv 25", "hv 50", "hv 100", "worst", "regret %", "covered")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parsed.jobs, context, start_worker) as pool:
        futures = {
            variant: [
                pool.submit(
                    run,
                    label,
                    n,
                    parsed.seed,
                    parsed.in_flight,
                    changes,
                    parsed.limits,
                    variant != "carbs, not told",
                )
                for n in numbers
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
