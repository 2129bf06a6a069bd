"""Search tasks with a known best front, some built from published training runs.

Notation
--------
N, D      parameters, tokens
c         cost, in the task's unit; the cap is the most that one trial may cost
hv        area in (log c, loss) that the tried configurations dominate inside
          [cheapest, cap] x [.., loss of the centre], over the area under the best front, which is
          integrated between its costs; a finite set cannot quite reach 1
regret    noiseless loss of the trial with the lowest observed loss, against the optimum at the cap,
          in percent of it

The tasks from published runs need the folder that holds them in the environment variable
CARBS_DATA: ``steplaw_dense.csv`` (Li et al. 2025, arXiv 2503.04715) and ``regmix_1m.csv`` (Liu et
al. 2024, arXiv 2407.01492). Their losses are interpolated by Gaussian processes, whose
cross-validated errors ``describe`` prints.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize
from gpytorch.kernels import MaternKernel, ScaleKernel
from gpytorch.mlls import ExactMarginalLogLikelihood
from scipy.spatial.distance import cdist

from carbs import LinearSpace, LogSpace, MixtureSpace, Param, SearchSpace
from carbs.pareto import hypervolume
from carbs.spaces import FloatArray

N_FRONT = 41
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Task:
    """A search problem whose noiseless answer is known.

    Attributes:
        loss, cost, fails: of a configuration, without noise.
        noise: standard deviation of a measured loss.
        cap: a dearer trial is killed there.
        budget: cost of all trials together.
        front: (costs, losses) of the best known configurations, cheapest first.
        error: what the surrogate behind the task gets wrong, in words.
        cost_noise: standard deviation of the logarithm of a measured cost.
        constraints: that a configuration must meet; to others than us it fails without them.
        told: limits of the whole search that it is told of: ``n_trials``, ``budget``.
        bounded: the parameters with bounds, for optimizers that need them; None for ``params``.
        optimum: the best configuration at any cost that the bounds allow (else None), not rounded,
            and its loss; None where that is not known beyond the cap.
    """

    name: str
    params: list[Param]
    loss: Callable[[Values], float]
    cost: Callable[[Values], float]
    fails: Callable[[Values], bool]
    noise: float
    cap: float
    budget: float
    front: tuple[FloatArray, FloatArray]
    error: str = "exact"
    cost_noise: float = 0.0
    constraints: Sequence[str] = ()
    told: Mapping[str, Any] = field(default_factory=dict)
    bounded: list[Param] | None = None
    optimum: Callable[[float], tuple[dict[str, Any], float] | None] | None = None

    @property
    def center(self) -> dict[str, Any]:
        return dict(SearchSpace(self.params).center_params)

    def hypervolume(self, tried: list[Values]) -> float:
        """hv of the configurations that neither failed nor went over the cap."""
        costs = np.array([self.cost(values) for values in tried])
        losses = np.array([self.loss(values) for values in tried])
        reference = self.loss(self.center)
        gains = np.maximum(reference - self.front[1], 0.0)
        best = float(np.trapezoid(gains, np.log(self.front[0])))
        return hypervolume(np.log(costs), losses, math.log(self.cap), reference) / best

    def regret(self, chosen: Values) -> float:
        """In percent."""
        optimum = float(self.front[1][-1])
        return 100 * (self.loss(chosen) - optimum) / optimum


def synthetic() -> Task:
    """Seven dimensions: a scaling law, moving optima, a divergence edge, two that do nothing."""

    def offsets(values: Values) -> tuple[float, float, float]:
        N, D = values["N"], values["D"]
        best_lr = 2e-3 * (N / 1e8) ** -0.3 * (D / 1e9) ** 0.1
        best_bs = 96 * (D / 1e9) ** 0.45
        return (
            math.log(values["lr"] / best_lr),
            math.log(values["bs"] / best_bs),
            math.log(values["wd"] / 0.1),
        )

    def loss(values: Values) -> float:
        u, v, w = offsets(values)
        law = 1.69 + 406.4 * values["N"] ** -0.34 + 410.7 * values["D"] ** -0.28
        damped = 1 + 0.05 * u**2
        return law + 0.035 * u**2 / damped + 0.015 * v**2 - 0.006 * u * v / damped + 0.004 * w**2

    def cost(values: Values) -> float:
        return float(50 + 6 * values["N"] * values["D"] / 1e15)

    def fails(values: Values) -> bool:
        return bool(values["lr"] > 2.4e-2 * (values["N"] / 1e7) ** -0.45)

    params = [
        Param("N", LogSpace(min=1e7, max=1e9), 3e7),
        Param("D", LogSpace(min=2e8, max=2e10), 6e8),
        Param("lr", LogSpace(min=1e-5, max=1e-1), 3e-4),
        Param("bs", LogSpace(min=8, max=2048), 256),
        Param("wd", LogSpace(min=1e-3, max=1), 0.01),
        Param("x", LinearSpace(min=0, max=1, scale=0.5), 0.5),
        Param("z", LogSpace(min=1e-8, max=1e-2), 1e-5),
    ]
    cap = 10_000.0
    costs = np.geomspace(cost({"N": 1e7, "D": 2e8}), cap, N_FRONT)
    losses = []
    for c in costs:
        best = math.inf
        for N in np.geomspace(1e7, 1e9, 2000):
            D = (c - 50) * 1e15 / (6 * N)
            if 2e8 <= D <= 2e10:
                best_lr = 2e-3 * (N / 1e8) ** -0.3 * (D / 1e9) ** 0.1
                lr = min(best_lr, 2.4e-2 * (N / 1e7) ** -0.45)
                bs = 96 * (D / 1e9) ** 0.45
                best = min(best, loss({"N": N, "D": D, "lr": lr, "bs": bs, "wd": 0.1}))
        losses.append(best)
    front = (costs, np.array(losses))
    return Task("synthetic", params, loss, cost, fails, 0.005, cap, 30 * cap, front)


def step_law() -> Task:
    """N, D, learning rate and batch size, from the published grid of dense models."""
    runs = pd.read_csv(_data() / "steplaw_dense.csv")
    cell_best = runs.groupby(["n_params", "n_tokens"])["loss"].transform("min")
    diverged = (runs["loss"] > cell_best + 1.0).to_numpy()
    Z = np.log(runs[["n_params", "n_tokens", "lr", "batch_size_sequences"]].to_numpy(dtype=float))
    losses = runs["loss"].to_numpy(dtype=float)
    edge = _logistic(Z, diverged)
    trend = _bowl(Z[~diverged], losses[~diverged])
    residual = losses[~diverged] - trend(Z[~diverged])
    predict = _gp(Z[~diverged], residual)
    error = _cross_validated(Z[~diverged], residual)

    def point(values: Values) -> FloatArray:
        return np.log([[values["N"], values["D"], values["lr"], values["bs"]]])

    def loss(values: Values) -> float:
        z = point(values)
        return float(trend(z)[0] + predict(z)[0])

    def cost(values: Values) -> float:
        return float(6 * values["N"] * values["D"] / 1e18)

    def fails(values: Values) -> bool:
        return bool(edge(point(values))[0] > 0.5)

    params = [
        Param("N", LogSpace(min=2.147e8, max=1.074e9, scale=0.5), 2.68e8),
        Param("D", LogSpace(min=4e9, max=1e11), 5e9),
        Param("lr", LogSpace(min=2.44e-4, max=2.21e-2), 6.9e-4),
        Param("bs", LogSpace(min=16, max=2048), 704),
    ]
    cap = 360.0
    costs = np.geomspace(cost({"N": 2.147e8, "D": 4e9}), cap, N_FRONT)

    def evaluate(points: FloatArray) -> FloatArray:
        z = np.log(points)
        return np.asarray(np.where(edge(z) > 0.5, np.inf, trend(z) + predict(z)))

    low = np.array([2.147e8, 4e9, 2.44e-4, 16.0])
    high = np.array([1.074e9, 1e11, 2.21e-2, 2048.0])
    best = [_best_at_product(evaluate, low, high, c * 1e18 / 6) for c in costs]
    # The front is what may be spent, not what must be.
    front = (costs, np.minimum.accumulate(best))
    return Task("step-law", params, loss, cost, fails, 0.002, cap, 30 * cap, front, error)


def mixture() -> Task:
    """Tokens and 17 shares, from the published mixture runs at 1M parameters."""
    runs = pd.read_csv(_data() / "regmix_1m.csv")
    columns = [name for name in runs.columns if name.startswith("w_")]
    weights = runs[columns].to_numpy(dtype=float)
    weights /= weights.sum(axis=1, keepdims=True)
    losses = runs["loss_pile_cc"].to_numpy(dtype=float)
    mean = float(losses.mean())
    Z = np.log(weights + 0.005)
    predict = _gp(Z, losses - mean)
    error = _cross_validated(Z, losses - mean)
    names = [name.removeprefix("w_") for name in columns]

    def of_tokens(D: float) -> float:
        return float(2085.43 * (D**-0.3658 - 1e9**-0.3658))

    def loss(values: Values) -> float:
        z = np.log([[values["mix"][name] + 0.005 for name in names]])
        return float(mean + predict(z)[0] + of_tokens(values["tokens"]))

    def cost(values: Values) -> float:
        return float(values["tokens"] / 1e6)

    params = [
        Param("tokens", LogSpace(min=5e7, max=1e9), 1e8),
        Param("mix", MixtureSpace(names), dict.fromkeys(names, 1 / len(names))),
    ]
    cap = 1000.0
    costs = np.geomspace(50.0, cap, N_FRONT)
    best = mean + float(predict(np.log(_best_mix(predict, weights)[None, :] + 0.005))[0])
    front = (costs, np.array([best + of_tokens(c * 1e6) for c in costs]))
    return Task("mixture", params, loss, cost, lambda _: False, 0.02, cap, 45 * cap, front, error)


TASKS: dict[str, Callable[[], Task]] = {
    "synthetic": cache(synthetic),
    "step-law": cache(step_law),
    "mixture": cache(mixture),
}


def _data() -> Path:
    folder = os.environ.get("CARBS_DATA")
    if folder is None:
        raise SystemExit("set CARBS_DATA to the folder that holds the published measurements")
    return Path(folder)


def _gp(Z: FloatArray, y: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Posterior mean of a Matern-5/2 process, botorch's defaults else, conditioned on all rows.

    Its parameters are fitted to 200 of them.
    """
    points, values = torch.as_tensor(Z), torch.as_tensor(y)[:, None] / float(y.std())
    some = np.random.default_rng(0).permutation(len(Z))[:200]
    covariance = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=Z.shape[1]))
    model = SingleTaskGP(
        points[some],
        values[some],
        covar_module=covariance,
        outcome_transform=None,
        input_transform=Normalize(Z.shape[1]),
    )
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    fit_gpytorch_mll(mll, optimizer_kwargs={"options": {"maxiter": 60}})
    model.eval()

    def kernel(X: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return covariance(model.input_transform(X), model.input_transform(other)).to_dense()

    noise, mean = model.likelihood.noise.item(), model.mean_module.constant.item()
    K = kernel(points, points) + noise * torch.eye(len(Z))
    weights = torch.linalg.solve(K, values - mean)
    spread = float(y.std())
    lengthscales = covariance.base_kernel.lengthscale.detach().numpy()[0]
    low, high = (
        b.numpy() for b in (points[some].min(dim=0).values, points[some].max(dim=0).values)
    )
    scaled = (Z - low) / (high - low) / lengthscales
    amplitude = covariance.outputscale.item() * weights.numpy()[:, 0]

    def predict(X: FloatArray) -> FloatArray:
        r = math.sqrt(5) * cdist((X - low) / (high - low) / lengthscales, scaled)
        return np.asarray(spread * (mean + ((1 + r + r * r / 3) * np.exp(-r)) @ amplitude))

    check = points[:5]
    expected = spread * (mean + kernel(check, points) @ weights)[:, 0].numpy()
    assert np.allclose(predict(check.numpy()), expected)
    return predict


def _cross_validated(Z: FloatArray, y: FloatArray) -> str:
    """Root mean square error over five folds."""
    folds = np.random.default_rng(0).permutation(len(Z)) % 5
    errors = np.concatenate(
        [y[folds == k] - _gp(Z[folds != k], y[folds != k])(Z[folds == k]) for k in range(5)]
    )
    return f"rmse {math.sqrt(float(np.mean(errors**2))):.4f} nats over five folds of {len(Z)} runs"


def _features(Z: FloatArray) -> FloatArray:
    """Quadratic features of standardised-ish logs."""
    z = Z - np.log([5e8, 2e10, 2e-3, 256.0])
    pairs = [z[:, i] * z[:, j] for i in range(4) for j in range(i, 4)]
    return np.stack([np.ones(len(z)), *z.T, *pairs], axis=1)


def _bowl(Z: FloatArray, losses: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """A quadratic in logs of log(loss - 1.5), by least squares: a law and a moving bowl at once."""
    beta, *_ = np.linalg.lstsq(_features(Z), np.log(losses - 1.5), rcond=None)
    return lambda points: np.asarray(1.5 + np.exp(_features(points) @ beta))


def _logistic(Z: FloatArray, labels: FloatArray) -> Callable[[FloatArray], FloatArray]:
    """Logistic regression on quadratic features, ridge-regularised, by Newton's method."""
    X = _features(Z)
    beta = np.zeros(X.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(X @ beta, -30, 30)))
        hessian = (X * (p * (1 - p))[:, None]).T @ X + 1e-2 * np.eye(X.shape[1])
        step = np.linalg.solve(hessian, X.T @ (labels - p) - 1e-2 * beta)
        beta = beta + step
    return lambda points: np.asarray(1 / (1 + np.exp(-np.clip(_features(points) @ beta, -30, 30))))


def _best_at_product(
    evaluate: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray, product: float
) -> float:
    """Least value over the box with the first two coordinates' product given."""
    rng = np.random.default_rng(0)
    points = np.exp(rng.uniform(np.log(low), np.log(high), size=(4000, 4)))
    for radius in (None, 0.3, 0.1, 0.03, 0.01):
        if radius is not None:
            best = points[np.argsort(values)[:40]]  # noqa: F821  # set in the first round
            moved = np.repeat(best, 25, axis=0)
            points = np.concatenate(
                [best, moved * np.exp(radius * rng.standard_normal(moved.shape))]
            )
        points = np.clip(points, low, high)
        points[:, 0] = np.clip(points[:, 0], product / high[1], product / low[1])
        points[:, 1] = product / points[:, 0]
        values = evaluate(points)
    return float(values.min())


def _best_mix(predict: Callable[[FloatArray], FloatArray], weights: FloatArray) -> FloatArray:
    """The mix of least predicted loss, by random search that contracts, from the measured mixes."""
    rng = np.random.default_rng(0)
    points = weights
    for radius in (1.0, 0.5, 0.5, 0.25, 0.25, 0.1, 0.1, 0.05, 0.02):
        best = points[np.argsort(predict(np.log(points + 0.005)))[:40]]
        moved = np.repeat(best, 60, axis=0) + 1e-3
        moved *= np.exp(radius * rng.standard_normal(moved.shape))
        moved = np.maximum(moved / moved.sum(axis=1, keepdims=True) - 1e-3, 0)
        points = np.concatenate([best, moved / moved.sum(axis=1, keepdims=True)])
    return np.asarray(points[np.argmin(predict(np.log(points + 0.005)))])
