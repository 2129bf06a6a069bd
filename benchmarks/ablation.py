"""What each idea of the search is worth: the benchmark with one of them taken out at a time.

    CARBS_DATA=... python benchmarks/ablation.py --seeds 5 --jobs 2

Rows are paired: the same seeds, the same noise. The table prints the scores of the whole search,
and for each row how they change without the idea (mean difference and its standard error).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table
from search import THREADS, Ours, scores, search
from tasks import TASKS

from carbs import acquisition, gaussian_process, optimizer, surrogate
from carbs.allowance import Allowance


@contextmanager
def stationary(kernel: str) -> Iterator[None]:
    """One of the surrogate's kernels without its linear part."""
    fit = getattr(surrogate, kernel).__wrapped__

    def fit_stationary(*arguments: Any) -> gaussian_process.Kernel:
        with patch.object(gaussian_process, "_TREND", 1e-6):
            return fit(*arguments)

    with patch.object(surrogate, kernel, fit_stationary):
        yield


def certain_success() -> AbstractContextManager[Any]:
    return patch.object(surrogate.Surrogate, "success_probability", lambda self, Z: np.ones(len(Z)))


def constant_exponent(exponent: float) -> AbstractContextManager[Any]:
    return patch.object(Allowance, "cost_exponent", lambda *_: exponent)


def full_slopes() -> AbstractContextManager[Any]:
    """Every share of a mixture with the slope of a whole parameter."""

    def fit(data: gaussian_process.Data, shares: Any, **options: Any) -> gaussian_process.Kernel:
        return gaussian_process.fit_kernel(data, **options)

    return patch.object(surrogate, "fit_kernel", fit)


WITHOUT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "the whole search": nullcontext,
    "one slope for a mixture": full_slopes,
    "trend of the loss": partial(stationary, "_output_kernel"),
    "irreducible loss (warp)": lambda: patch.object(surrogate, "_SHIFTS", (30.0,)),
    "drawing in of bad losses": lambda: patch.object(surrogate, "_draw_in", lambda y, Z: y),
    "trend of the log cost": partial(stationary, "_cost_kernel"),
    "success model": certain_success,
    "per cost: exponent 0": partial(constant_exponent, 0.0),
    "per cost: exponent 0.3 throughout": partial(constant_exponent, 0.3),
    "trust box": lambda: patch.object(optimizer, "_TRUST_MARGIN", 100.0),
    "area beyond the cap": lambda: patch.object(acquisition, "_BEYOND_CAP", 0.0),
}


def run(name: str, without: str, seed: int) -> list[float]:
    task = TASKS[name]()
    for fitted in (surrogate._output_kernel, surrogate._cost_kernel, surrogate._success_kernel):
        fitted.cache_clear()  # of a search with other parts
    with WITHOUT[without]():
        return scores(task, search(task, Ours(task, seed), 1000 + seed, in_flight=1))[:4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--without", nargs="+", choices=list(WITHOUT), default=list(WITHOUT))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    console = Console(width=100)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=spawn) as pool:
        for name in arguments.tasks:
            table = Table("without", "hv 25%", "hv 50%", "hv 100%", "regret %", title=name)
            futures = {
                without: [pool.submit(run, name, without, s) for s in range(arguments.seeds)]
                for without in arguments.without
            }
            rows = {
                without: np.array([future.result() for future in runs])
                for without, runs in futures.items()
            }
            whole = rows["the whole search"]
            table.add_row("nothing", *(f"{mean:.3f}" for mean in whole.mean(axis=0)))
            for without, row in rows.items():
                if without != "the whole search":
                    change = row - whole
                    mean = change.mean(axis=0)
                    error = change.std(axis=0, ddof=1) / np.sqrt(len(change))
                    cells = [f"{m:+.3f} ± {e:.3f}" for m, e in zip(mean, error, strict=True)]
                    table.add_row(without, *cells)
            console.print(table)


if __name__ == "__main__":
    main()
