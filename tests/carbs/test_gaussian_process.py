"""The process and the fit of its kernel, beside gpytorch's and beside plain linear algebra."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from botorch.models import SingleTaskGP
from gpytorch.kernels import MaternKernel, PolynomialKernel, ScaleKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from hypothesis import given, strategies as st
from scipy.stats import multivariate_normal

from carbs import LogSpace, MixtureSpace, Param, SearchSpace
from carbs.gaussian_process import Data, GaussianProcess, Kernel, KernelPosterior, fit_kernel
from carbs.spaces import FloatArray

NOISE_PRIOR = (-4.0, 1.0)


def sample(n: int, d: int, seed: int) -> tuple[FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, d))
    y = np.sin(Z[:, 0]) + 0.3 * Z[:, -1] + 0.1 * rng.normal(size=n)
    return Z, (y - y.mean()) / y.std()


def random_theta(posterior: KernelPosterior, seed: int) -> FloatArray:
    theta = posterior.pack(posterior.kernel)
    return np.asarray(theta + 0.7 * np.random.default_rng(seed).normal(size=len(theta)))


@pytest.mark.parametrize(("n", "d"), [(1, 1), (12, 3), (40, 7)])
def test_the_fit_climbs_what_gpytorch_would(n: int, d: int) -> None:
    Z, y = sample(n + 1, d, seed=n)
    Z, y = Z[:n], y[:n]
    posterior = KernelPosterior(Data.pooled(Z, y[:, None]), Kernel.likely(Z), NOISE_PRIOR)
    theta = random_theta(posterior, seed=d)
    value, gradient = posterior(theta)

    prior = LogNormalPrior(math.log(d) / 2, 0.8)
    matern = MaternKernel(nu=2.5, ard_num_dims=d, lengthscale_prior=prior)
    trend = PolynomialKernel(power=1)
    scaled = ScaleKernel(matern, outputscale_prior=GammaPrior(2.0, 1.5))
    likelihood = GaussianLikelihood(noise_prior=LogNormalPrior(*NOISE_PRIOR))
    X = torch.as_tensor(posterior.X)
    model = SingleTaskGP(
        X,
        torch.as_tensor(y)[:, None],
        likelihood=likelihood,
        covar_module=scaled + trend,
        mean_module=ZeroMean(),
        outcome_transform=None,
    )
    raw = np.exp(theta)
    matern.lengthscale, scaled.outputscale = torch.as_tensor(raw[:d]), float(raw[d])
    likelihood.noise, trend.offset = float(raw[d + 1]), 1.0
    objective = ExactMarginalLogLikelihood(likelihood, model).train()
    log_posterior = n * objective(model(X), torch.as_tensor(y))
    log_posterior.backward()
    assert value == pytest.approx(-log_posterior.item(), rel=1e-6)
    # By the raw parameter r, of which the parameter is softplus(r); by its logarithm here.
    raws = [matern.raw_lengthscale, scaled.raw_outputscale, likelihood.noise_covar.raw_noise]
    slopes = np.concatenate(
        [(raw.grad / torch.sigmoid(raw.detach())).numpy().reshape(-1) for raw in raws]
    )
    np.testing.assert_allclose(-gradient, slopes * raw, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("n_sweeps", "curvature"), [(0, 0.0), (0, 3.0), (2, 3.0)])
@given(seed=st.integers(0, 10**6))
def test_the_gradient_is_that_of_the_value_also_with_repeats_forecasts_and_earlier_sweeps(
    seed: int, n_sweeps: int, curvature: float
) -> None:
    rng = np.random.default_rng(seed)
    Z, y = sample(10, 2, seed)
    Z = np.hstack([Z, np.eye(n_sweeps + 1)[np.arange(10) % (n_sweeps + 1), 1:]])
    Z = Z[rng.integers(10, size=18)]
    y = rng.normal(size=18)
    data = Data.pooled(Z, y[:, None], 0.1 * rng.random(18), n_sweeps)
    kernel = Kernel.likely(Z, n_sweeps, shares=np.array([1.0, 0.25]), curvature=curvature)
    posterior = KernelPosterior(data, kernel, NOISE_PRIOR)
    theta = random_theta(posterior, seed)
    _, gradient = posterior(theta)
    steps = 1e-5 * np.eye(len(theta))
    slopes = [(posterior(theta + h)[0] - posterior(theta - h)[0]) / 2e-5 for h in steps]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10**6))
def test_pooled_repeats_are_the_same_as_every_single_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    Z, y = sample(6, 2, seed)
    places = rng.integers(6, size=15)
    Z, Y = Z[places], y[places, None] + rng.normal(size=(15, 2))
    kernel = Kernel.likely(Z)
    pooled = GaussianProcess(kernel, Data.pooled(Z, Y))
    ones = np.ones(len(Z))
    single = GaussianProcess(kernel, Data(Z, Y, ones, np.zeros(2), 0 * ones))
    queries = rng.normal(size=(8, 2))
    for a, b in zip(pooled.posterior(queries), single.posterior(queries), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        pooled.log_marginal_likelihood(), single.log_marginal_likelihood(), rtol=1e-6
    )


def test_the_evidence_is_a_normal_density() -> None:
    Z, y = sample(9, 3, seed=0)
    kernel = Kernel.likely(Z)
    X = kernel.unit(Z)
    covariance = kernel(X, X) + kernel.noise * np.eye(9)
    expected = multivariate_normal(np.zeros(9), covariance).logpdf(y)
    process = GaussianProcess(kernel, Data.pooled(Z, y[:, None]))
    assert process.log_marginal_likelihood()[0] == pytest.approx(expected)


def test_the_shares_of_a_mixture_have_the_slope_of_one_parameter() -> None:
    """Far along all four at once, the line varies as far along a single number."""
    kernel = Kernel.likely(np.zeros((1, 5)), shares=np.array([1.0, 0.25, 0.25, 0.25, 0.25]))
    number, mixture = np.array([[1e3, 0, 0, 0, 0], [0, 1e3, 1e3, 1e3, 1e3]])[:, None]
    assert kernel.diagonal(number) == pytest.approx(kernel.diagonal(mixture))
    for Z in (number, mixture):
        assert kernel(Z, Z)[0] == pytest.approx(kernel.diagonal(Z))
    space = SearchSpace(
        [
            Param("rate", LogSpace(), 1.0),
            Param("mix", MixtureSpace(list("abcd")), dict.fromkeys("abcd", 0.25)),
        ]
    )
    assert space.shares.tolist() == [1, 0.25, 0.25, 0.25, 0.25]


def test_a_forecast_that_may_be_far_off_pulls_less() -> None:
    Z = np.array([[0.0], [1.0], [2.0]])
    Y = np.array([[0.0], [1.0], [0.0]])
    kernel = Kernel.likely(Z)
    means, stds = [], []
    for deviation in (0.0, 0.5, 5.0):
        extra = np.array([0.0, deviation**2, 0.0])
        mean, std = GaussianProcess(kernel, Data.pooled(Z, Y, extra)).posterior(Z[1:2])
        means.append(mean[0, 0])
        stds.append(std[0])
    assert means[0] > 0.9 > means[1] > means[2] > 0.0
    assert stds[0] < stds[1] < stds[2]


def test_bowls_along_many_dimensions_are_told_by_a_few_runs_along_each() -> None:
    """Twelve dimensions, two runs along each: the losses of moves along two of them at once."""
    d, rng = 12, np.random.default_rng(0)
    heights, optima = rng.uniform(0.2, 2.0, d), rng.uniform(-0.3, 0.3, d)
    steps = np.concatenate([-0.5 * np.eye(d), 0.5 * np.eye(d)])
    pairs = np.array([steps[i] + steps[j] for i in range(2 * d) for j in range(i) if i - j != d])
    losses = [np.square(Z - optima) @ heights for Z in (steps, pairs)]
    seen, unseen = ((loss - losses[0].mean()) / losses[0].std() for loss in losses)
    data = Data.pooled(steps, seen[:, None])
    errors = []
    for curvature in (0.0, 3.0):
        process = GaussianProcess(fit_kernel(data, curvature=curvature), data)
        errors.append(np.square(process.posterior(pairs)[0][:, 0] - unseen).mean())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("n_first", [4, 15])
def test_where_a_fit_starts_hardly_matters(n_first: int) -> None:
    Z, y = sample(30, 3, seed=3)
    start = fit_kernel(Data.pooled(Z[:n_first], y[:n_first, None]))
    data = Data.pooled(Z, y[:, None])
    cold, warm = fit_kernel(data), fit_kernel(data, start=start)
    np.testing.assert_allclose(warm.lengthscales, cold.lengthscales, rtol=0.05)
    assert warm.noise == pytest.approx(cold.noise, rel=0.05)
