"""Search quality beside the peers, in one run.

    CARBS_DATA=... python benchmarks/search.py --seeds 5
    CARBS_DATA=... python benchmarks/search.py --tasks synthetic --in-flight 8 --seeds 3

Every optimizer starts from the same cheap centre, on one thread. A trial over the cap is killed
there, charged the cap and told as a failure; one that diverges is charged 30% of its cost. The
search ends with the budget, or after 150 trials. Times are CPU seconds a suggestion, thinking only.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import optuna
import torch
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table
from tasks import TASKS, Task

from carbs import CARBS, SearchSpace
from carbs.space import MixtureSpace
from carbs.study import distributions, flatten, unflatten

MAX_TRIALS = 150
SHARES = (0.25, 0.5, 1.0)


class Optimizer(Protocol):
    """Asks and tells; ``handle`` is whatever the optimizer wants to see again."""

    def ask(self) -> tuple[Any, Mapping[str, Any]]: ...

    def tell(self, handle: Any, loss: float | None, cost: float) -> None: ...


class Ours:
    def __init__(self, task: Task, seed: int) -> None:
        self._optimizer = CARBS(task.params, max_cost=task.cap, seed=seed)
        self.covered: list[tuple[bool, bool]] = []

    def ask(self) -> tuple[Any, Mapping[str, Any]]:
        suggestion = self._optimizer.suggest()
        return suggestion, suggestion.params

    def tell(self, handle: Any, loss: float | None, cost: float) -> None:
        if loss is None:
            self._optimizer.observe_failure(handle, reason="failed", cost=cost)
            return
        if handle.predicted_output_interval is not None:
            low, high = handle.predicted_output_interval
            low_cost, high_cost = handle.predicted_cost_interval
            self.covered.append((low <= loss <= high, low_cost <= cost <= high_cost))
        self._optimizer.observe(handle, output=loss, cost=cost)


class OfOptuna:
    """An Optuna sampler with two objectives, (loss, cost); mixtures as softmax weights."""

    def __init__(self, task: Task, sampler: optuna.samplers.BaseSampler) -> None:
        self._space = SearchSpace(task.params)
        self._study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {}
        for name, distribution in distributions(self._space).items():
            is_share = "." in name
            self._distributions[name] = (
                optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)
                if is_share
                else distribution
            )
        center = flatten(self._space.center_params)
        self._study.enqueue_trial(
            {name: 0.1 if "." in name else value for name, value in center.items()}
        )

    def ask(self) -> tuple[Any, Mapping[str, Any]]:
        trial = self._study.ask(self._distributions)
        flat = dict(trial.params)
        for param in self._space.params:
            if isinstance(param.space, MixtureSpace):
                names = [f"{param.name}.{component}" for component in param.space.components]
                total = sum(flat[name] for name in names)
                flat.update({name: flat[name] / total for name in names})
        values = unflatten(self._space, flat)
        assert values is not None
        return trial, values

    def tell(self, handle: Any, loss: float | None, cost: float) -> None:
        if loss is None:
            self._study.tell(handle, state=TrialState.FAIL)
        else:
            self._study.tell(handle, [loss, np.log(cost)])


OPTIMIZERS: dict[str, Callable[[Task, int], Optimizer]] = {
    "carbs": Ours,
    "optuna GP": lambda task, seed: OfOptuna(
        task, optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
    ),
    "optuna TPE": lambda task, seed: OfOptuna(
        task, optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    ),
    "random": lambda task, seed: OfOptuna(task, optuna.samplers.RandomSampler(seed=seed)),
}


@dataclass
class Search:
    """One search: what was tried, in the order in which it ended, and what had been spent."""

    tried: list[Mapping[str, Any]] = field(default_factory=list)
    observed: list[float] = field(default_factory=list)
    spent: list[float] = field(default_factory=list)
    n_asked: int = 0
    thinking_s: float = 0.0


def search(task: Task, optimizer: Optimizer, seed: int, in_flight: int) -> Search:
    """Run until the budget is spent. A trial lasts as long as its cost."""
    rng = np.random.default_rng(seed)
    done, running, counter = Search(), [], itertools.count()
    spent = clock = 0.0
    while True:
        while len(running) < in_flight and spent < task.budget and done.n_asked < MAX_TRIALS:
            started = time.process_time()
            handle, values = optimizer.ask()
            done.thinking_s += time.process_time() - started
            done.n_asked += 1
            cost = task.cost(values)
            loss: float | None = task.loss(values) + task.noise * rng.standard_normal()
            if task.fails(values):
                loss, charge = None, 0.3 * min(cost, task.cap)
            elif cost > task.cap:
                loss, charge = None, task.cap
            else:
                charge = cost
            spent += charge
            heapq.heappush(running, (clock + charge, next(counter), handle, values, loss, charge))
        if not running:
            return done
        clock, _, handle, values, loss, charge = heapq.heappop(running)
        started = time.process_time()
        optimizer.tell(handle, loss, charge)
        done.thinking_s += time.process_time() - started
        done.spent.append(charge + (done.spent[-1] if done.spent else 0.0))
        done.tried.append(values)
        done.observed.append(np.inf if loss is None else loss)


def scores(task: Task, found: Search) -> list[float]:
    """hv at the shares of the budget, regret in percent, CPU seconds a suggestion."""
    hypervolumes = []
    for share in SHARES:
        n = sum(spent <= share * task.budget + 1e-9 for spent in found.spent)
        good = [v for v, y in zip(found.tried[:n], found.observed[:n], strict=True) if y < np.inf]
        hypervolumes.append(task.hypervolume(good) if good else 0.0)
    best = found.tried[int(np.argmin(found.observed))]
    return [*hypervolumes, task.regret(best), found.thinking_s / found.n_asked]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=[*OPTIMIZERS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    console = Console(width=110)
    for name in arguments.tasks:
        task = TASKS[name]()
        table = Table(
            title=f"{name}, {arguments.in_flight} in flight, {arguments.seeds} seeds "
            f"(surrogate: {task.error})"
        )
        for column in ("optimizer", "hv 25%", "hv 50%", "hv 100%", "regret %", "CPU s", "covered"):
            table.add_column(column, justify="left" if column == "optimizer" else "right")
        for label in arguments.optimizers:
            rows, covered = [], []
            for seed in range(arguments.seeds):
                optimizer = OPTIMIZERS[label](task, seed)
                found = search(task, optimizer, 1000 + seed, arguments.in_flight)
                rows.append(scores(task, found))
                covered += getattr(optimizer, "covered", [])
            mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0)
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean[:3], spread[:3], strict=True)]
            cells += [f"{mean[3]:.2f} ± {spread[3]:.2f}", f"{mean[4]:.3f}"]
            shares = np.mean(covered, axis=0) if covered else None
            cells.append("" if shares is None else f"{shares[0]:.0%} {shares[1]:.0%}")
            table.add_row(label, *cells)
            console.print(f"{name}: {label} {' '.join(cells)}", highlight=False)
        console.print(table)


if __name__ == "__main__":
    main()
