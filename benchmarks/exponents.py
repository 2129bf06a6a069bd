"""Exponents and plans from searches of the synthetic task, against the truth.

    OMP_NUM_THREADS=1 python benchmarks/exponents.py sweeps

The truth is computed from the noiseless loss: at each cost the best N, and D, learning rate, batch
size that go with it. The reference for the exponents' intervals is a straight line through the
observed Pareto front in logs, with its 90% t interval.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats
from sweeps import make
from tasks import TASKS

from carbs import CARBS
from carbs.analysis import fit_front, hyperparameter_curves, plan
from carbs.spaces import FloatArray

NAMES = ("N", "D", "lr", "bs", "wd")
FACTOR = 100.0


@cache
def optimum(cost: float) -> tuple[dict[str, float], float]:
    """The best configuration of the synthetic task at a cost, N and D unbounded, and its loss."""
    loss = TASKS["synthetic"]().loss
    products = (cost - 50) * 1e15 / 6

    def at(n_params: float) -> dict[str, float]:
        D = products / n_params
        return {
            "N": n_params,
            "D": D,
            "lr": 2e-3 * (n_params / 1e8) ** -0.3 * (D / 1e9) ** 0.1,
            "bs": min(96 * (D / 1e9) ** 0.45, 2048.0),
            "wd": 0.1,
        }

    grid = np.geomspace(1e7, 1e13, 1001).tolist()
    best = min((at(n) for n in grid if products / n >= 2e8), key=loss)
    return best, loss(best)


def exponents(costs: FloatArray) -> dict[str, float]:
    """Of the true optimum in cost, by least squares in logs."""
    best = [optimum(float(cost))[0] for cost in costs]
    return {
        name: float(np.polyfit(np.log(costs), np.log([b[name] for b in best]), 1)[0])
        for name in NAMES
    }


def judged(path: Path) -> dict[str, Any]:
    """One search: exponents and their intervals, and the plan beside the truth."""
    task = TASKS["synthetic"]()
    optimizer = CARBS.load(path)
    front = fit_front(optimizer.space, optimizer.observations, optimizer.failures)
    curves = {curve.name: curve for curve in hyperparameter_curves(front)}
    observed = optimizer.pareto_front()
    x = np.log([run.cost for run in observed])
    truth = exponents(np.geomspace(1e4, 1e6, 5))
    own, reference = {}, {}
    for name in NAMES:
        _, low, high = curves[name].exponent or (math.nan,) * 3
        own[name] = low <= truth[name] <= high, high - low
        line = stats.linregress(x, np.log([float(run.params[name]) for run in observed]))  # type: ignore[arg-type]
        half = float(stats.t.ppf(0.95, len(x) - 2) * line.stderr)
        reference[name] = abs(line.slope - truth[name]) <= half, 2 * half
    cost = FACTOR * front.dearest
    planned = plan(front, cost)
    values: Mapping[str, Any] = planned.params
    true_loss, best = task.loss(values), optimum(cost)[1]
    low, high = planned.output_interval
    return {
        "own": own,
        "reference": reference,
        "regret": 100 * (true_loss / best - 1),
        "inside": low <= true_loss <= high,
        "width": 100 * (high - low) / true_loss,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of the searches; those it lacks are made")
    parser.add_argument("--most", type=int, default=50)
    arguments = parser.parse_args()
    report([judged(path) for path in make(arguments.folder, arguments.most)])


def report(results: list[dict[str, Any]]) -> None:
    """Print both tables."""
    console = Console()
    table = Table(title=f"exponents after 150 trials, {len(results)} searches, 90% intervals")
    for name in ("", "covered", "width", "line through the front: covered", "width"):
        table.add_column(name, justify="right")
    for name in NAMES:
        row = []
        for kind in ("own", "reference"):
            row.append(f"{np.mean([r[kind][name][0] for r in results]):.0%}")
            row.append(f"{np.median([r[kind][name][1] for r in results]):.3f}")
        table.add_row(name, *row)
    console.print(table)
    regrets = np.array([r["regret"] for r in results])
    table = Table(title=f"plans at {FACTOR:g} times the dearest run")
    for name in ("regret %", "worst", "within 1%", "interval covers", "width %"):
        table.add_column(name, justify="right")
    table.add_row(
        f"{regrets.mean():.2f}",
        f"{regrets.max():.2f}",
        f"{(regrets <= 1).mean():.0%}",
        f"{np.mean([r['inside'] for r in results]):.0%}",
        f"{np.mean([r['width'] for r in results]):.1f}",
    )
    console.print(table)


if __name__ == "__main__":
    main()
