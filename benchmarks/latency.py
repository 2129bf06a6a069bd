"""Thinking time and memory: CPU seconds a suggestion, beside the peers.

    python benchmarks/latency.py
    python benchmarks/latency.py --observations 20 100 --dims 7 --optimizers carbs "optuna GP"
    python benchmarks/latency.py --batch
    python benchmarks/latency.py --sweep --limit-s 3600
    python benchmarks/latency.py --fit

Every cell of a table is a process of its own, on one thread, that ends after ``--limit-s`` CPU
seconds: what it had not measured by then is "-". The optimizer is told n observations that look
like a search's, and then asked and told in turn. The first suggestion, as after a restart, fits
everything from scratch; the following ones are the steady state of a running sweep. Memory is the
peak over what the process held once it had made a few suggestions of another, small search.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from botorch.models import SingleTaskGP
from gpytorch.kernels import MaternKernel, PolynomialKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from rich.console import Console
from rich.table import Table
from search import OPTIMIZERS, THREADS, Ours, start_worker
from tasks import Task

from carbs import LogSpace, Param, SearchSpace
from carbs.gaussian_process import Data, Kernel, KernelPosterior

N_FOLLOWING = 9
N_BATCH, N_BATCH_OBSERVED = 64, 100
SWEEP = (100, 300, 1000)
FIT_OBSERVATIONS, FIT_DIMS, FIT_REPEATS = (30, 100, 300, 1000), 7, 20
TIME_RAN_OUT = 3  # exit code


def analytic(n_dims: int) -> Task:
    """A scaling law in N and D, a bowl around a moving learning rate, and shallower bowls."""
    others = [f"p{i}" for i in range(3, n_dims)]

    def loss(values: Any) -> float:
        N, D = values["N"], values["D"]
        law = 1.69 + 406.4 * N**-0.34 + 410.7 * D**-0.28
        u = math.log(values["lr"] / (2e-3 * (N / 1e8) ** -0.3 * (D / 1e9) ** 0.1))
        bowls = sum(
            0.02 / (k + 1) * math.log(values[name] / 3) ** 2 for k, name in enumerate(others)
        )
        return float(law + 0.035 * u**2 / (1 + 0.05 * u**2) + bowls)

    def cost(values: Any) -> float:
        return float(6 * values["N"] * values["D"] / 1e15)

    params = [
        Param("N", LogSpace(min=1e7, max=1e9), 3e7),
        Param("D", LogSpace(min=2e8, max=2e10), 6e8),
        Param("lr", LogSpace(min=1e-5, max=1e-1), 3e-4),
        *(Param(name, LogSpace(min=1e-2, max=1e2), 1.0) for name in others),
    ]
    no_front = (np.empty(0), np.empty(0))
    return Task("analytic", params, loss, cost, lambda _: False, 0.005, 1e4, math.inf, no_front)


def measured(task: Task, values: Any, rng: np.random.Generator) -> tuple[float, float]:
    """Loss and cost, with noise."""
    loss = task.loss(values) + task.noise * rng.standard_normal()
    return loss, task.cost(values) * math.exp(0.02 * rng.standard_normal())


def trials(task: Task, n: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """The centre, and then a search's trials: growing along the front, four in five close to it."""
    space = SearchSpace(task.params)
    yield dict(space.center_params)
    for _ in range(n - 1):
        z = (0.15 if rng.random() < 0.8 else 0.7) * rng.standard_normal(space.n_dims)
        z[:2] += rng.uniform(0, 1)  # decades of N and D
        z[2:] += 0.4
        yield dict(space.decode(z))


@dataclass(frozen=True)
class Cell:
    """``n_observed`` observations are told, and ``n_asked`` times ``at_once`` asked for."""

    label: str
    n_dims: int
    n_observed: int
    n_asked: int = 1 + N_FOLLOWING
    at_once: int = 1


def think(cell: Cell) -> Iterator[tuple[float, float]]:
    """CPU seconds of each suggestion, and the peak memory in MiB so far."""
    warm_up = Cell(cell.label, n_dims=3, n_observed=20, n_asked=2)
    for _ in suggestions(warm_up):
        pass  # what is imported and compiled late
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = peak_mib()
    for cpu_s in suggestions(cell):
        yield cpu_s, peak_mib() - before


def suggestions(cell: Cell) -> Iterator[float]:
    """CPU seconds of each."""
    task, rng = analytic(cell.n_dims), np.random.default_rng(0)
    optimizer = OPTIMIZERS[cell.label](task, 0)
    for values in trials(task, cell.n_observed, rng) if cell.n_observed else ():
        optimizer.learn(values, *measured(task, values, rng))
    for _ in range(cell.n_asked):
        if cell.at_once > 1:
            assert isinstance(optimizer, Ours)
            started = time.process_time()
            batch = optimizer.optimizer.suggest(cell.at_once)
            yield time.process_time() - started
            for suggestion in batch[1:]:
                optimizer.optimizer.forget(suggestion)
            optimizer.tell(batch[0], *measured(task, batch[0].params, rng))
        else:
            started = time.process_time()
            handle, tried = optimizer.ask()
            yield time.process_time() - started
            optimizer.tell(handle, *measured(task, tried, rng))


def fits(n: int) -> Iterator[float]:
    """CPU milliseconds of one marginal likelihood and its gradient, by gpytorch and by carbs."""
    task, rng = analytic(FIT_DIMS), np.random.default_rng(0)
    tried = list(trials(task, n, rng))
    X = torch.from_numpy(SearchSpace(task.params).encode_all(tried))
    y = torch.tensor([measured(task, values, rng)[0] for values in tried], dtype=torch.float64)
    y = (y - y.mean()) / y.std()
    prior = LogNormalPrior(math.log(FIT_DIMS) / 2, 0.8)
    matern = MaternKernel(nu=2.5, ard_num_dims=FIT_DIMS, lengthscale_prior=prior)
    trend = PolynomialKernel(power=1)  # z.z' + 1
    trend.initialize(offset=1.0).requires_grad_(False)
    model = SingleTaskGP(
        X,
        y[:, None],
        likelihood=GaussianLikelihood(noise_prior=LogNormalPrior(-4.0, 1.0)),
        covar_module=ScaleKernel(matern, outputscale_prior=GammaPrior(2.0, 1.5)) + trend,
        mean_module=ZeroMean(),
        outcome_transform=None,
    )
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model).train()

    def by_gpytorch() -> None:
        model.zero_grad()
        likelihood(model(X), y).backward()

    yield median_ms(by_gpytorch)
    data = Data.pooled(X.numpy(), y.numpy()[:, None])
    posterior = KernelPosterior(data, Kernel.likely(data.Z), (-4.0, 1.0))
    theta = posterior.pack(posterior.kernel)
    yield median_ms(lambda: posterior(theta))


def median_ms(function: Callable[[], None]) -> float:
    times = []
    for _ in range(1 + FIT_REPEATS):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return float(1000 * np.median(times[1:]))


def peak_mib() -> float:
    # Not ru_maxrss, in which a process starts with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def in_child(function: Callable[..., Iterator[Any]], argument: Any, limit_s: int) -> list[Any]:
    """What ``function(argument)`` yields in a process of its own until its time is up."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send_all, args=(function, argument, limit_s, sender))
    child.start()
    sender.close()
    received = []
    with suppress(EOFError):
        while True:
            received.append(receiver.recv())
    child.join()
    if child.exitcode not in (0, TIME_RAN_OUT, -signal.SIGKILL):  # the last: memory ran out
        raise SystemExit(f"{argument} ended with exit code {child.exitcode}")
    return received


def _send_all(
    function: Callable[..., Iterator[Any]], argument: Any, limit_s: int, sender: Connection
) -> None:
    start_worker()
    # Not RLIMIT_CPU, under which Linux counts a process's time in ticks of 4 ms.
    end_s = time.process_time() + limit_s
    threading.Thread(target=_exit_at, args=(end_s,), daemon=True).start()
    for item in function(argument):
        sender.send(item)


def _exit_at(end_s: float) -> None:
    while time.process_time() < end_s:
        time.sleep(0.2)
    os._exit(TIME_RAN_OUT)


def seconds(times: list[float], of: Callable[[list[float]], Any]) -> str:
    return f"{of(times):.3f}" if times else "-"


def latency_table(labels: list[str], dims: list[int], sizes: list[int], limit_s: int) -> Table:
    table = Table(title="CPU seconds a suggestion, one thread")
    for column in ("optimizer", "dims", "observations", "first", "median", "max", "peak MiB"):
        table.add_column(column, justify="left" if column == "optimizer" else "right")
    for label in labels:
        for n_dims in dims:
            found: list[tuple[float, float]] | None = None
            for n in sizes:
                # What could not be done with fewer observations is not tried with more.
                if found != []:
                    found = in_child(think, Cell(label, n_dims, n), limit_s)
                times = [cpu_s for cpu_s, _ in found]
                cells = [seconds(times[:1], max), seconds(times[1:], np.median)]
                cells += [seconds(times[1:], max), f"{found[-1][1]:.0f}" if found else "-"]
                table.add_row(label, str(n_dims), str(n), *cells)
                print(f"{label}: {n_dims} dims, {n} observations:", *cells, flush=True)
    return table


def batch_table(dims: list[int], limit_s: int) -> Table:
    title = f"carbs: CPU seconds for {N_BATCH} suggestions at {N_BATCH_OBSERVED} observations"
    table = Table("dims", "first", "median", "max", title=title)
    for n_dims in dims:
        cell = Cell("carbs", n_dims, N_BATCH_OBSERVED, n_asked=4, at_once=N_BATCH)
        times = [cpu_s for cpu_s, _ in in_child(think, cell, limit_s)]
        table.add_row(
            str(n_dims),
            seconds(times[:1], max),
            seconds(times[1:], np.median),
            seconds(times[1:], max),
        )
    return table


def sweep_table(labels: list[str], dims: list[int], limit_s: int) -> Table:
    table = Table("optimizer", "dims", title="CPU seconds of thinking in a sequential sweep")
    for n in SWEEP:
        table.add_column(f"{n} trials", justify="right")
    for label in labels:
        for n_dims in dims:
            cell = Cell(label, n_dims, n_observed=0, n_asked=max(SWEEP))
            times = [cpu_s for cpu_s, _ in in_child(think, cell, limit_s)]
            cells = [f"{sum(times[:n]):.1f}" if len(times) >= n else "-" for n in SWEEP]
            table.add_row(label, str(n_dims), *cells)
            print(f"{label}: {n_dims} dims:", *cells, flush=True)
    return table


def fit_table(limit_s: int) -> Table:
    title = f"CPU ms of a marginal likelihood and its gradient, {FIT_DIMS} dims"
    table = Table("observations", "gpytorch", "carbs", title=title)
    for n in FIT_OBSERVATIONS:
        table.add_row(str(n), *(f"{ms:.2f}" for ms in in_child(fits, n, limit_s)))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    labels = [label for label in OPTIMIZERS if label != "random"]
    sizes = [20, 100, 300, 1000, 3000, 10000]
    parser.add_argument("--optimizers", nargs="+", choices=labels, default=labels)
    parser.add_argument("--observations", nargs="+", type=int, default=sizes)
    parser.add_argument("--dims", nargs="+", type=int, default=[4, 7, 16, 32])
    parser.add_argument("--limit-s", type=int, default=120, help="CPU seconds of one cell")
    parser.add_argument("--batch", action="store_true", help=f"suggest({N_BATCH}) of carbs")
    parser.add_argument("--sweep", action="store_true", help=f"all of {max(SWEEP)} trials")
    parser.add_argument("--fit", action="store_true", help="one marginal likelihood")
    arguments = parser.parse_args()
    os.environ.update(dict.fromkeys(THREADS, "1"))  # the children import with these
    if arguments.batch:
        table = batch_table(arguments.dims, arguments.limit_s)
    elif arguments.sweep:
        table = sweep_table(arguments.optimizers, arguments.dims, arguments.limit_s)
    elif arguments.fit:
        table = fit_table(arguments.limit_s)
    else:
        table = latency_table(
            arguments.optimizers, arguments.dims, sorted(arguments.observations), arguments.limit_s
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
