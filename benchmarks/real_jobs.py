"""Searches of real training jobs outside of language models, replayed from a recorded table.

    python benchmarks/real_jobs.py --seeds 10 --jobs 2        # the searches
    pip install scikit-learn && python benchmarks/real_jobs.py --record    # the table, anew

Five of scikit-learn's models on its own data sets, each trained once at every point of a grid: the
loss is that of held-out data (log loss, or squared error over the variance), the cost the CPU
seconds of the fit on one thread. A search moves freely between the grid's ends and is answered with
the nearest run, so that every optimizer sees the same, exactly. The best front is the table's own.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
TABLE = Path(__file__).parent / "real_jobs.csv"
N_TRIALS_PER_CAP = 15  # the budget, in runs at the cap


@dataclass(frozen=True)
class Setting:
    """A parameter's grid, on a logarithmic scale, and where a search begins."""

    low: float
    high: float
    n: int
    center: float
    is_integer: bool = False

    @property
    def grid(self) -> tuple[float, ...]:
        values = np.geomspace(self.low, self.high, self.n)
        return tuple(float(round(v)) if self.is_integer else float(f"{v:.4g}") for v in values)


@dataclass(frozen=True)
class Job:
    """A model on a data set.

    Attributes:
        data: the name of its loader in ``sklearn.datasets``.
        is_regression: squared error over the variance, else log loss.
        make: the untrained model, of the settings without ``share``, the share of the data.
    """

    data: str
    is_regression: bool
    settings: dict[str, Setting]
    make: Callable[[Mapping[str, Any]], Any]


def _mlp(s: Mapping[str, Any]) -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        (int(s["width"]),),
        learning_rate_init=s["learning_rate"],
        alpha=s["alpha"],
        max_iter=int(s["epochs"]),
        n_iter_no_change=10_000,
        random_state=0,
    )


def _boosting(s: Mapping[str, Any]) -> Any:
    from sklearn.ensemble import GradientBoostingRegressor

    return GradientBoostingRegressor(
        learning_rate=s["learning_rate"],
        n_estimators=int(s["n_trees"]),
        max_depth=int(s["depth"]),
        subsample=s["subsample"],
        random_state=0,
    )


def _histogram_boosting(s: Mapping[str, Any]) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        learning_rate=s["learning_rate"],
        max_iter=int(s["n_trees"]),
        max_leaf_nodes=int(s["leaves"]),
        l2_regularization=s["l2"],
        early_stopping=False,
        random_state=0,
    )


def _forest(s: Mapping[str, Any]) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        int(s["n_trees"]),
        max_features=s["features"],
        min_samples_leaf=int(s["least_leaf"]),
        max_samples=s["share_a_tree"],
        random_state=0,
    )


def _nystroem(s: Mapping[str, Any]) -> Any:
    from sklearn.kernel_approximation import Nystroem
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    features = Nystroem(gamma=s["gamma"], n_components=int(s["n_components"]), random_state=0)
    return make_pipeline(features, LogisticRegression(C=s["C"], max_iter=int(s["steps"])))


JOBS = {
    "MLP, digits": Job(
        "load_digits",
        False,
        {
            "width": Setting(4, 256, 7, 16, True),
            "learning_rate": Setting(1e-4, 1e-1, 7, 1e-3),
            "alpha": Setting(1e-5, 10, 4, 1e-3),
            "epochs": Setting(2, 64, 6, 4, True),
        },
        _mlp,
    ),
    "gradient boosting, diabetes": Job(
        "load_diabetes",
        True,
        {
            "learning_rate": Setting(1e-3, 1, 7, 0.3),
            "n_trees": Setting(8, 1024, 8, 16, True),
            "depth": Setting(1, 8, 4, 4, True),
            "subsample": Setting(0.1, 1, 4, 1),
        },
        _boosting,
    ),
    "histogram boosting, breast cancer": Job(
        "load_breast_cancer",
        False,
        {
            "learning_rate": Setting(3e-3, 1, 6, 0.3),
            "n_trees": Setting(4, 256, 7, 8, True),
            "leaves": Setting(2, 32, 5, 8, True),
            "l2": Setting(1e-3, 100, 4, 1e-2),
        },
        _histogram_boosting,
    ),
    "random forest, digits": Job(
        "load_digits",
        False,
        {
            "n_trees": Setting(4, 512, 8, 8, True),
            "features": Setting(0.02, 1, 5, 0.3),
            "least_leaf": Setting(1, 16, 5, 4, True),
            "share_a_tree": Setting(0.1, 1, 4, 0.3),
        },
        _forest,
    ),
    "Nystroem logistic regression, digits": Job(
        "load_digits",
        False,
        {
            "gamma": Setting(1e-5, 1e-1, 9, 1e-2),
            "n_components": Setting(16, 1024, 7, 32, True),
            "C": Setting(1e-2, 1e4, 7, 1),
            "steps": Setting(10, 160, 3, 40, True),
        },
        _nystroem,
    ),
}


def train(name: str, settings: Mapping[str, float]) -> tuple[float, float]:
    """Held-out loss and CPU seconds of one run."""
    import warnings

    from sklearn import datasets
    from sklearn.metrics import log_loss
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    job = JOBS[name]
    X, y = getattr(datasets, job.data)(return_X_y=True)
    X, X_held, y, y_held = train_test_split(X, y, test_size=0.3, random_state=0)
    scaler = StandardScaler().fit(X)
    X, X_held = scaler.transform(X), scaler.transform(X_held)
    model = job.make(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was asked to stop early
        started = time.process_time()
        model.fit(X, y)
        seconds = time.process_time() - started
    if job.is_regression:
        return float(np.mean((model.predict(X_held) - y_held) ** 2) / np.var(y_held)), seconds
    odds = np.clip(model.predict_proba(X_held), 1e-4, 1)
    return float(log_loss(y_held, odds / odds.sum(axis=1, keepdims=True))), seconds


def record(path: Path, n_jobs: int) -> None:
    """Every run of every grid, as rows of job, settings, loss and seconds."""
    runs = [
        (name, dict(zip(job.settings, values, strict=True)))
        for name, job in JOBS.items()
        for values in itertools.product(*(s.grid for s in job.settings.values()))
    ]
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(n_jobs, context) as pool,
        path.open("w", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["job", "settings", "loss", "seconds"])
        measured = pool.map(train, *zip(*runs, strict=True), chunksize=8)
        for (name, settings), (loss, seconds) in zip(runs, measured, strict=True):
            said = " ".join(f"{key}={value:g}" for key, value in settings.items())
            writer.writerow([name, said, f"{loss:.5g}", f"{seconds:.4g}"])


@cache
def table(name: str) -> dict[tuple[str, ...], tuple[float, float]]:
    """Loss and seconds at each point of the grid."""
    with TABLE.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["job"] == name]
    return {
        tuple(item.partition("=")[2] for item in row["settings"].split()): (
            float(row["loss"]),
            float(row["seconds"]),
        )
        for row in rows
    }


def task(name: str) -> Any:
    """The recorded job as a search task."""
    from tasks import Task

    from carbs import LogSpace, Param
    from carbs.pareto import pareto_front

    job = JOBS[name]
    runs = table(name)
    grids = {key: np.log(setting.grid) for key, setting in job.settings.items()}

    def nearest(values: Mapping[str, Any]) -> tuple[float, float]:
        key = []
        for setting, grid in grids.items():
            i = int(np.argmin(np.abs(grid - math.log(values[setting]))))
            key.append(f"{job.settings[setting].grid[i]:g}")
        return runs[tuple(key)]

    params = [
        Param(
            key,
            LogSpace(min=s.low, max=s.high, is_integer=s.is_integer),
            int(s.center) if s.is_integer else s.center,
        )
        for key, s in job.settings.items()
    ]
    losses, seconds = np.array(list(runs.values())).T
    cap = float(np.quantile(seconds, 0.98))
    kept = seconds < cap
    log_costs, losses = np.log(seconds[kept]), losses[kept]
    front = pareto_front(log_costs, losses)
    ends = [*log_costs[front][1:], math.log(cap)]
    steps = np.array(list(zip(log_costs[front], ends, strict=True))).ravel()
    return Task(
        name,
        params,
        lambda values: nearest(values)[0],
        lambda values: nearest(values)[1],
        lambda values: False,
        0.0,
        cap,
        N_TRIALS_PER_CAP * cap,
        (np.exp(steps), np.repeat(losses[front], 2)),
    )


def run(label: str, name: str, seed: int, is_told: bool) -> list[float]:
    """hv at 25, 50 and 100% of the budget, regret in percent, and the dearest run over the cap."""
    from search import MAX_TRIALS, OPTIMIZERS, scores, search

    job = task(name)
    if is_told:
        job = replace(job, told={"n_trials": MAX_TRIALS, "budget": job.budget})
    found = search(job, OPTIMIZERS[label](job, seed), 1000 + seed, 1)
    dearest = max(min(job.cost(values), job.cap) for values in found.tried)
    return [*scores(job, found)[:4], dearest / job.cap, float(len(found.tried))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--optimizers", nargs="+", default=["carbs", "optuna TPE", "random"])
    parser.add_argument("--told", action="store_true", help="tell carbs the limits")
    parser.add_argument("--names", nargs="+", choices=list(JOBS), default=list(JOBS))
    parser.add_argument("--jobs", type=int, default=2)
    parsed = parser.parse_args(arguments)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    if parsed.record:
        record(TABLE, parsed.jobs)
        return
    from rich.console import Console
    from rich.table import Table
    from search import start_worker

    shown = Table("job", "", "hv 25%", "hv 50%", "hv 100%", "regret %", "dearest / cap", "trials")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parsed.jobs, context, start_worker) as pool:
        futures = {
            (name, label): [
                pool.submit(run, label, name, seed, parsed.told) for seed in range(parsed.seeds)
            ]
            for name in parsed.names
            for label in parsed.optimizers
        }
        for (name, label), ones in futures.items():
            rows = np.array([one.result() for one in ones])
            errors = rows.std(axis=0, ddof=1) / math.sqrt(len(rows))
            cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(rows.mean(axis=0), errors, strict=True)]
            shown.add_row(
                name, label, *cells[:4], cells[4].split(" ")[0], f"{rows[:, 5].mean():.0f}"
            )
            print(name, label, *cells, flush=True)
    Console(width=140).print(shown)


if __name__ == "__main__":
    main()
