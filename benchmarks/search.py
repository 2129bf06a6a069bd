"""Search quality beside the peers, in one run.

    CARBS_DATA=... python benchmarks/search.py --seeds 5
    CARBS_DATA=... python benchmarks/search.py --tasks synthetic --in-flight 1 8 64 --jobs 2
    CARBS_DATA=... python benchmarks/search.py --optimizers carbs --in-flight 1 64 --max-trials 1000

Every optimizer starts from the same cheap centre, on one thread. A trial over the cap is killed
there, charged the cap and told as a failure; one that diverges is charged 30% of its cost. The
search ends with the budget, or after 150 trials: with 64 in flight, 64 of these are asked before
anything is known, so that a comparison at equal cost (the last command) must not limit the trials.
Times are CPU seconds a suggestion, thinking only.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import optuna
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.exceptions.warnings import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.transforms import Standardize
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from gpytorch.mlls import SumMarginalLogLikelihood
from linear_operator.utils.warnings import NumericalWarning
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from rich.console import Console
from rich.table import Table
from tasks import TASKS, Task

from carbs import CARBS, LogSpace, SearchSpace
from carbs.spaces import MixtureSpace, NumericSpace
from carbs.study import distributions, flatten, unflatten

MAX_TRIALS = 150
SHARES = (0.25, 0.5, 1.0)
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Optimizer(Protocol):
    """Asks and tells; ``handle`` is whatever the optimizer wants to see again."""

    def ask(self) -> tuple[Any, Mapping[str, Any]]: ...

    def tell(self, handle: Any, loss: float | None, cost: float) -> None: ...

    def learn(self, values: Mapping[str, Any], loss: float, cost: float) -> None:
        """Observe a configuration that was not asked for."""


class Ours:
    def __init__(self, task: Task, seed: int) -> None:
        self.optimizer = CARBS(
            task.params,
            constraints=task.constraints,
            max_cost=task.cap,
            seed=seed,
            **task.told,
        )
        self.covered: list[tuple[bool, bool]] = []

    def ask(self) -> tuple[Any, Mapping[str, Any]]:
        suggestion = self.optimizer.suggest()
        return suggestion, suggestion.params

    def tell(self, handle: Any, loss: float | None, cost: float) -> None:
        if loss is None:
            self.optimizer.observe_failure(handle, reason="failed", cost=cost)
            return
        if handle.predicted_output_interval is not None:
            low, high = handle.predicted_output_interval
            low_cost, high_cost = handle.predicted_cost_interval
            self.covered.append((low <= loss <= high, low_cost <= cost <= high_cost))
        self.optimizer.observe(handle, output=loss, cost=cost)

    def learn(self, values: Mapping[str, Any], loss: float, cost: float) -> None:
        self.optimizer.observe(values, output=loss, cost=cost)


class FlatSpace:
    """The space as peers see it: bounded numbers by name, mixtures as softmax weights.

    A whole number on a logarithmic scale that goes in steps is searched as a number, and rounded.
    """

    def __init__(self, task: Task) -> None:
        self._space = SearchSpace(task.bounded or task.params)
        self.distributions: dict[str, BaseDistribution] = {
            name: _for_peers(name, distribution)
            for name, distribution in distributions(self._space).items()
        }
        for param in self._space.params:
            if isinstance(param.space, LogSpace) and param.space.is_integer:
                low, high = param.space.limits()
                self.distributions[param.name] = FloatDistribution(low, high, log=True)
        self.center = self.flat(self._space.center_params)

    def flat(self, values: Mapping[str, Any]) -> dict[str, Any]:
        flat = flatten(values)
        for names in self._mixtures():
            largest = max(flat[name] for name in names)
            flat.update({name: max(0.1 * flat[name] / largest, 1e-3) for name in names})
        return flat

    def params(self, flat: Mapping[str, Any]) -> Mapping[str, Any]:
        flat = dict(flat)
        for names in self._mixtures():
            total = sum(flat[name] for name in names)
            flat.update({name: flat[name] / total for name in names})
        for param in self._space.params:
            space = param.space
            if isinstance(space, NumericSpace) and space.is_integer:
                low, high = space.limits()
                step = space.rounding_factor
                flat[param.name] = int(min(max(round(flat[param.name] / step) * step, low), high))
        values = unflatten(self._space, flat)
        assert values is not None
        return values

    def _mixtures(self) -> list[list[str]]:
        return [
            [f"{param.name}.{component}" for component in param.space.components]
            for param in self._space.params
            if isinstance(param.space, MixtureSpace)
        ]


def _for_peers(name: str, distribution: BaseDistribution) -> BaseDistribution:
    return FloatDistribution(1e-3, 1.0, log=True) if "." in name else distribution


class OfOptuna:
    """An Optuna sampler with two objectives, (loss, log cost).

    A failure is told as the worst loss seen: the GP sampler takes no notice of failed trials, and
    would suggest them again and again.
    """

    def __init__(self, task: Task, sampler: optuna.samplers.BaseSampler) -> None:
        self._space = FlatSpace(task)
        self._study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
        self._worst = -math.inf

    def ask(self) -> tuple[Any, Mapping[str, Any]]:
        if not self._study.get_trials(deepcopy=False):
            self._study.enqueue_trial(self._space.center)
        trial = self._study.ask(self._space.distributions)
        return trial, self._space.params(trial.params)

    def tell(self, handle: Any, loss: float | None, cost: float) -> None:
        self._worst = max(self._worst, -math.inf if loss is None else loss)
        if math.isfinite(self._worst):
            self._study.tell(handle, [self._worst if loss is None else loss, math.log(cost)])
        else:
            self._study.tell(handle, state=TrialState.FAIL)

    def learn(self, values: Mapping[str, Any], loss: float, cost: float) -> None:
        self._study.add_trial(
            create_trial(
                params=self._space.flat(values),
                distributions=self._space.distributions,
                values=[loss, math.log(cost)],
            )
        )


class OfBoTorch:
    """qLogNEHVI on (loss, log cost), set up as BoTorch's multi-objective tutorials set it up.

    One process an objective on the unit cube, refitted for every suggestion, after a Sobol start.
    A failure goes to the model that it says something about: a killed trial has a cost, the cap,
    but no loss; a diverged one has no cost, and gets the worst loss seen. Dropped altogether, as
    BoTorch's users also do, failures would be suggested again and again.
    """

    def __init__(self, task: Task, seed: int) -> None:
        self._space = FlatSpace(task)
        self._log_cap = math.log(task.cap)
        self._seed = seed
        n_dims = len(self._point(self._space.center))
        self._n_start = min(1 + 2 * (n_dims + 1), 10)
        self._sobol = torch.quasirandom.SobolEngine(n_dims, scramble=True, seed=seed)
        # All trials' points, the centre first, and what is known of each by its number.
        self._points: list[torch.Tensor] = []
        self._losses: dict[int, float] = {}
        self._log_costs: dict[int, float] = {}
        self._diverged: set[int] = set()

    def ask(self) -> tuple[Any, Mapping[str, Any]]:
        if not self._points:
            point = self._point(self._space.center)
        elif len(self._points) < self._n_start or len(self._losses) < 2:
            point = self._sobol.draw(1, dtype=torch.float64)[0]
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1000 * self._seed + len(self._points))
                point = self._search()
        self._points.append(point)
        return len(self._points) - 1, self._space.params(self._flat(point))

    def tell(self, handle: Any, loss: float | None, cost: float) -> None:
        if loss is not None:
            self._losses[handle], self._log_costs[handle] = loss, math.log(cost)
        elif math.log(cost) >= self._log_cap:
            self._log_costs[handle] = self._log_cap
        else:
            self._diverged.add(handle)

    def learn(self, values: Mapping[str, Any], loss: float, cost: float) -> None:
        self._points.append(self._point(self._space.flat(values)))
        self.tell(len(self._points) - 1, loss, cost)

    def _search(self) -> torch.Tensor:
        X = torch.stack(self._points)
        worst = max(self._losses.values())
        losses = self._losses | dict.fromkeys(self._diverged, worst)
        model = ModelListGP(
            *(
                SingleTaskGP(
                    X[list(known)],
                    -torch.tensor(list(known.values()), dtype=X.dtype)[:, None],
                    outcome_transform=Standardize(m=1),
                )
                for known in (losses, self._log_costs)
            )
        )
        fit_gpytorch_mll(SumMarginalLogLikelihood(model.likelihood, model))
        told = losses.keys() | self._log_costs.keys()
        pending = [number for number in range(len(X)) if number not in told]
        score = qLogNoisyExpectedHypervolumeImprovement(
            model,
            ref_point=[-losses.get(0, worst), -self._log_cap],
            X_baseline=X[list(self._losses)],
            prune_baseline=True,
            X_pending=X[pending] if pending else None,
            sampler=SobolQMCNormalSampler(torch.Size([128]), seed=self._seed),
        )
        cube = torch.stack([torch.zeros_like(X[0]), torch.ones_like(X[0])])
        best: torch.Tensor
        best, _ = optimize_acqf(score, cube, q=1, num_restarts=4, raw_samples=128)
        return best[0]

    def _point(self, flat: Mapping[str, Any]) -> torch.Tensor:
        """In the unit cube; a choice is one dimension for each label."""
        point: list[float] = []
        for name, d in self._space.distributions.items():
            if isinstance(d, CategoricalDistribution):
                point += [float(choice == flat.get(name)) for choice in d.choices]
            else:
                low, high, warp, _ = _ends(d)
                point.append((warp(flat[name]) - low) / (high - low) if name in flat else 0.5)
        return torch.tensor(point, dtype=torch.float64)

    def _flat(self, point: torch.Tensor) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        rest = point.tolist()
        for name, d in self._space.distributions.items():
            if isinstance(d, CategoricalDistribution):
                k = len(d.choices)
                flat[name], rest = d.choices[int(np.argmax(rest[:k]))], rest[k:]
            else:
                low, high, _, unwarp = _ends(d)
                flat[name] = min(max(unwarp(low + rest[0] * (high - low)), d.low), d.high)
                rest = rest[1:]
        return flat


def _ends(d: Any) -> tuple[float, float, Callable[..., float], Callable[..., float]]:
    warp, unwarp = (math.log, math.exp) if d.log else (float, float)
    return warp(d.low), warp(d.high), warp, unwarp


OPTIMIZERS: dict[str, Callable[[Task, int], Optimizer]] = {
    "carbs": Ours,
    "optuna GP": lambda task, seed: OfOptuna(
        task, optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)
    ),
    "optuna TPE": lambda task, seed: OfOptuna(
        task, optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    ),
    "BoTorch qLogNEHVI": OfBoTorch,
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


def search(
    task: Task, optimizer: Optimizer, seed: int, in_flight: int, max_trials: int = MAX_TRIALS
) -> Search:
    """Run until the budget is spent. A trial lasts as long as its cost."""
    rng = np.random.default_rng(seed)
    done, counter = Search(), itertools.count()
    running: list[tuple[float, int, Any, Mapping[str, Any], float | None, float]] = []
    spent = clock = 0.0
    while True:
        while len(running) < in_flight and spent < task.budget and done.n_asked < max_trials:
            started = time.process_time()
            handle, values = optimizer.ask()
            done.thinking_s += time.process_time() - started
            done.n_asked += 1
            cost = task.cost(values)
            loss: float | None = task.loss(values) + task.noise * rng.standard_normal()
            if task.cost_noise:
                cost *= math.exp(task.cost_noise * rng.standard_normal())
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


@dataclass(frozen=True)
class Run:
    """What a worker hands back of one search."""

    scores: list[float]
    covered: list[tuple[bool, bool]]
    error: str


def run(name: str, label: str, seed: int, in_flight: int, max_trials: int) -> Run:
    task = TASKS[name]()
    optimizer = OPTIMIZERS[label](task, seed)
    found = search(task, optimizer, 1000 + seed, in_flight, max_trials)
    return Run(scores(task, found), getattr(optimizer, "covered", []), task.error)


def start_worker() -> None:
    """One thread, and no warnings from peers."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for category in (optuna.exceptions.ExperimentalWarning, BotorchWarning, NumericalWarning):
        warnings.simplefilter("ignore", category)
    warnings.filterwarnings("ignore", "Optimization failed in `gen_candidates", RuntimeWarning)


def row(runs: Sequence[Run]) -> list[str]:
    """A table's cells: mean and spread over the seeds."""
    mean, spread = (f([run.scores for run in runs], axis=0) for f in (np.mean, np.std))
    cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean[:3], spread[:3], strict=True)]
    cells += [f"{mean[3]:.2f} ± {spread[3]:.2f}", f"{mean[4]:.3f}"]
    covered = [pair for run in runs for pair in run.covered]
    shares = np.mean(covered, axis=0) if covered else None
    return [*cells, "" if shares is None else f"{shares[0]:.0%} {shares[1]:.0%}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=[*OPTIMIZERS])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1])
    parser.add_argument("--max-trials", type=int, default=MAX_TRIALS)
    parser.add_argument("--jobs", type=int, default=1, help="searches at once, one thread each")
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    console = Console(width=120)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, context, start_worker) as pool:
        searches = {
            (name, in_flight, label): [
                pool.submit(run, name, label, seed, in_flight, arguments.max_trials)
                for seed in range(arguments.seeds)
            ]
            for name in arguments.tasks
            for in_flight in arguments.in_flight
            for label in arguments.optimizers
        }
        for name, in_flight in itertools.product(arguments.tasks, arguments.in_flight):
            table = Table()
            table.add_column("optimizer")
            for column in ("hv 25%", "hv 50%", "hv 100%", "regret %", "CPU s", "covered"):
                table.add_column(column, justify="right")
            for label in arguments.optimizers:
                runs = [future.result() for future in searches[name, in_flight, label]]
                cells = row(runs)
                table.add_row(label, *cells)
                console.print(f"{name}: {label} {' '.join(cells)}", highlight=False)
            table.title = (
                f"{name}, {in_flight} in flight, {arguments.seeds} seeds, "
                f"at most {arguments.max_trials} trials"
                f" (surrogate: {runs[0].error})"
                + (f"; {arguments.jobs} at once, so times are noisy" if arguments.jobs > 1 else "")
            )
            console.print(table)


if __name__ == "__main__":
    main()
