"""What an earlier sweep's records are worth, by how much it has in common with the new task.

    python benchmarks/warm_start.py --seeds 5 --jobs 2

The new task is the synthetic one, with a small budget. The earlier sweep is a search of ours on

    same         the same task
    related      its optimal learning rate twice as high, its losses scaled by 1.2 and shifted by
                 0.3, its costs three times as high
    units        the same task, its losses a hundred times as high and its costs in hours
    mirrored     the learning rate mirrored within its bounds, so that its optimum is elsewhere
    reversed     losses reversed: the better there, the worse here

``hv`` is that of ``search.py``, at shares of the new sweep's budget, of the new runs alone.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from search import SHARES, THREADS, Ours, scores, search, start_worker
from tasks import TASKS, Task

from carbs import CARBS, EarlierSweep


def related(task: Task) -> Task:
    def there(values: Mapping[str, Any]) -> dict[str, Any]:
        return {**values, "lr": values["lr"] / 2}

    return replace(
        task,
        loss=lambda values: 1.2 * task.loss(there(values)) + 0.3,
        cost=lambda values: 3 * task.cost(values),
        fails=lambda values: task.fails(there(values)),
        cap=3 * task.cap,
    )


def units(task: Task) -> Task:
    return replace(
        task,
        loss=lambda values: 100 * task.loss(values),
        cost=lambda values: task.cost(values) / 3600,
        noise=100 * task.noise,
        cap=task.cap / 3600,
    )


def mirrored(task: Task) -> Task:
    def there(values: Mapping[str, Any]) -> dict[str, Any]:
        return {**values, "lr": 1e-6 / values["lr"]}

    return replace(
        task,
        loss=lambda values: task.loss(there(values)),
        fails=lambda values: task.fails(there(values)),
    )


def reversed_(task: Task) -> Task:
    return replace(task, loss=lambda values: 8 - task.loss(values))


EARLIER: dict[str, Callable[[Task], Task] | None] = {
    "cold": None,
    "same": lambda task: task,
    "related": related,
    "units": units,
    "mirrored": mirrored,
    "reversed": reversed_,
}


def earlier_sweep(task: Task, n: int, seed: int) -> EarlierSweep:
    """The first ``n`` runs of a search."""
    optimizer = Ours(task, seed)
    rng = np.random.default_rng(seed)
    for _ in range(n):
        suggestion, values = optimizer.ask()
        loss, cost = task.loss(values) + task.noise * rng.standard_normal(), task.cost(values)
        is_bad = task.fails(values) or cost > task.cap
        optimizer.tell(suggestion, None if is_bad else loss, min(cost, task.cap))
    return EarlierSweep.of(optimizer.optimizer)


def run(label: str, n_earlier: int, n_caps: float, seed: int) -> list[float]:
    task = TASKS["synthetic"]()
    task = replace(task, budget=n_caps * task.cap)
    optimizer = Ours(task, seed)
    if (make := EARLIER[label]) is not None:
        earlier = [earlier_sweep(make(task), n_earlier, 100 + seed)]
        optimizer.optimizer = CARBS(task.params, max_cost=task.cap, earlier=earlier, seed=seed)
    found = search(task, optimizer, 1000 + seed, in_flight=1)
    return [*scores(task, found), found.n_asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--earlier", nargs="+", choices=list(EARLIER), default=list(EARLIER))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=60, help="of the earlier sweep")
    parser.add_argument("--caps", type=float, default=8, help="the new sweep's budget")
    parser.add_argument("--jobs", type=int, default=1, help="searches at once, one thread each")
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    table = Table(title=f"{arguments.caps:g} caps, {arguments.seeds} seeds")
    for column in ("earlier", *(f"hv {share:.0%}" for share in SHARES), "regret %", "CPU s", "n"):
        table.add_column(column, justify="right")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, start_worker) as pool:
        searches = {
            label: [
                pool.submit(run, label, arguments.runs, arguments.caps, seed)
                for seed in range(arguments.seeds)
            ]
            for label in arguments.earlier
        }
        for label, futures in searches.items():
            runs = np.array([future.result() for future in futures])
            mean, error = runs.mean(axis=0), runs.std(axis=0) / math.sqrt(len(runs))
            cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(mean[:3], error[:3], strict=True)]
            table.add_row(label, *cells, *(f"{m:.2f}" for m in mean[3:]))
            print(label, *cells, *(f"{m:.2f}" for m in mean[3:]), flush=True)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
