"""What early stopping saves, and which share of the runs on the front it stops.

    python benchmarks/early_stopping.py --folder /tmp/curves --tasks simulated --seeds 5
    python benchmarks/early_stopping.py --folder /tmp/curves --tasks recorded --seeds 4

A search is made once, to its end, with nothing stopped; its runs and their learning curves lie in
the folder, and are made anew where they do not. Then it is replayed in its order: each run is shown
to the rule report by report, with the runs that the rule has let finish before it.

``simulated``: the synthetic search task, 100 trials a search, with curves of a plausible shape: a
power law of the tokens seen, an excess that goes with the learning rate and vanishes as that
decays, noise, and now and then a spike from which some of the run is left to recover.

``scattered``: the same task and curves at random configurations around its centre, most of them
hopeless: runs in random order, as the bound supposes.

``recorded``: the reference language model on the demo's parameters, on this machine's CPU, 80 runs
a search of at most 3 s.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tasks import synthetic

from carbs import CARBS, SearchSpace
from carbs.early_stopping import FinishedRun, forecast, is_off_front
from carbs.launchers.controller.config import load_sweep
from carbs.launchers.job.files import read_curve
from carbs.launchers.job.protocol import BadConfigurationError, Job
from carbs.launchers.lm.train import train
from carbs.pareto import pareto_front
from carbs.spaces import FloatArray

MISS_SHARES = (0.05, 0.1)
DEMO = Path(__file__).parents[1] / "launchers" / "demo.yaml"


def simulated(folder: Path, seed: int) -> list[FinishedRun]:
    task = synthetic()
    rng = np.random.default_rng(seed)
    optimizer = CARBS(task.params, max_cost=task.cap, seed=seed)
    runs = []
    for _ in range(100):
        suggestion = optimizer.suggest()
        values = suggestion.params
        cost = task.cost(values) * math.exp(0.02 * rng.standard_normal())
        if task.fails(values):
            optimizer.observe_failure(suggestion, reason="diverged", cost=0.3 * cost)
            continue
        end = task.loss(values) + task.noise * rng.standard_normal()
        runs.append(_simulated_run(values, end, cost, rng))
        optimizer.observe(suggestion, output=runs[-1].output, cost=cost)
    return runs


def scattered(folder: Path, seed: int) -> list[FinishedRun]:
    task = synthetic()
    space = SearchSpace(task.params)
    rng = np.random.default_rng(seed)
    runs = []
    while len(runs) < 100:
        values = space.decode(space.snap(rng.standard_normal((1, space.n_dims)))[0])
        if not task.fails(values):
            runs.append(_simulated_run(values, task.loss(values), task.cost(values), rng))
    return runs


def _simulated_run(
    values: Mapping[str, Any], end: float, cost: float, rng: np.random.Generator
) -> FinishedRun:
    f = np.arange(1, 10) / 10
    # The task's own law: a run that has seen the share f of its tokens lacks this much.
    lacking = 410.7 * values["D"] ** -0.28 * (f**-0.28 - 1)
    best_lr = 2e-3 * (values["N"] / 1e8) ** -0.3 * (values["D"] / 1e9) ** 0.1
    heat = 0.15 * min(math.sqrt(values["lr"] / best_lr), 4) * math.exp(0.2 * rng.standard_normal())
    outputs = end + lacking + heat * (1 - f) ** 0.8 + 0.01 * rng.standard_normal(len(f))
    edge = 2.4e-2 * (values["N"] / 1e7) ** -0.45
    if values["lr"] > 0.5 * edge and rng.random() < 0.3:
        spike = rng.uniform(0.1, 0.9)
        outputs = outputs + np.where(f > spike, np.exp(-5 * (f - spike)), 0.0)
        end += math.exp(-5 * (1 - spike))
    return FinishedRun(np.stack([f, outputs, cost * f], axis=1), end, cost)


def recorded(folder: Path, seed: int) -> list[FinishedRun]:
    optimizer = CARBS(load_sweep(DEMO).parameters, max_cost=3.0, seed=seed)
    runs = []
    for number in range(80):
        suggestion = optimizer.suggest()
        job = Job(folder / f"jobs-{seed}" / f"{number}", folder / "shared", seed=number)
        job.folder.mkdir(parents=True)
        try:
            result = train(suggestion.params, job)
        except BadConfigurationError as error:
            optimizer.observe_failure(suggestion, reason=error.reason, cost=error.cost)
            continue
        optimizer.observe(suggestion, output=result.output, cost=result.cost)
        points = [(p.progress, p.output, p.cost) for p in read_curve(job.folder)]
        runs.append(FinishedRun(np.reshape(points, (-1, 3)), result.output, result.cost))
    return runs


TASKS: dict[str, Callable[[Path, int], list[FinishedRun]]] = {
    "simulated": simulated,
    "scattered": scattered,
    "recorded": recorded,
}


def search(task: str, folder: Path, seed: int) -> list[FinishedRun]:
    """A search's runs in their order: those on file, or new ones, which are then on file."""
    path = folder / f"{task}-{seed}.json"
    if not path.exists():
        (folder / "shared").mkdir(parents=True, exist_ok=True)
        runs = TASKS[task](folder, seed)
        path.write_text(json.dumps([(run.curve.tolist(), run.output, run.cost) for run in runs]))
    return [
        FinishedRun(np.reshape(curve, (-1, 3)), output, cost)
        for curve, output, cost in json.loads(path.read_text())
    ]


def replay(runs: list[FinishedRun], miss_share: float) -> FloatArray:
    """The progress at which each run is stopped, 1 where it is not; shape ``(n,)``."""
    finished: list[FinishedRun] = []
    stopped_at = np.ones(len(runs))
    for number, run in enumerate(runs):
        for t in range(1, len(run.curve) + 1):
            end = forecast(run.curve[:t], finished, miss_share=miss_share)
            if end is not None and is_off_front(end, finished):
                stopped_at[number] = run.curve[t - 1, 0]
                break
        else:
            finished.append(run)
    return stopped_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"early stopping, {arguments.seeds} searches of each task")
    for column in ("task", "miss share", "runs", "stopped", "front", "front stopped"):
        table.add_column(column, justify="right")
    table.add_column("cost off the front", justify="right")
    table.add_column("cost saved", justify="right")
    for task in arguments.tasks:
        searches = [search(task, arguments.folder, seed) for seed in range(arguments.seeds)]
        for miss_share in MISS_SHARES:
            counts = np.zeros(4, dtype=int)
            shares = []
            for runs in searches:
                costs = np.array([run.cost for run in runs])
                front = np.zeros(len(runs), dtype=bool)
                front[pareto_front(costs, np.array([run.output for run in runs]))] = True
                progress = replay(runs, miss_share)
                stopped = progress < 1
                counts += [len(runs), stopped.sum(), front.sum(), (stopped & front).sum()]
                off, saved = costs[~front].sum(), costs @ (1 - progress)
                shares.append([off / costs.sum(), saved / costs.sum()])
            off, saved = np.mean(shares, axis=0)
            n, n_stopped, n_front, n_missed = counts
            missed = f"{n_missed} ({n_missed / n_front:.1%})"
            cells = [n, n_stopped, n_front, missed, f"{off:.0%}", f"{saved:.1%}"]
            table.add_row(task, f"{miss_share:g}", *map(str, cells))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
