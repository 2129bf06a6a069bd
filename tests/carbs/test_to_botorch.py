"""The surrogate as a BoTorch model: the same posterior, on which BoTorch's acquisitions run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import WeightedMCMultiOutputObjective
from botorch.acquisition.objective import LinearMCObjective
from botorch.optim import optimize_acqf
from botorch.sampling import SobolQMCNormalSampler
from hypothesis import given, settings, strategies as st

from carbs import ChoiceSpace, EarlierSweep, LogSpace, MixtureSpace, Observation, Param, SearchSpace
from carbs.spaces import FloatArray
from carbs.surrogate import Surrogate, fit_surrogate

SPACE = SearchSpace(
    [
        Param("size", LogSpace(), 1.0),
        Param("kind", ChoiceSpace(["a", "b"]), "a"),
        Param("mix", MixtureSpace(["code", "prose"]), {"code": 0.5, "prose": 0.5}),
    ]
)


def runs(seed: int, n: int, noise: float = 0.02) -> list[Observation]:
    rng = np.random.default_rng(seed)
    found = []
    for z in SPACE.snap(rng.normal(0, 1, (n, SPACE.n_dims))):
        params = SPACE.decode(z)
        size, mix = params["size"], params["mix"]
        assert isinstance(size, float)
        assert isinstance(mix, dict)
        loss = 2 + size**-0.2 + (mix["code"] - 0.3) ** 2 + 0.1 * (params["kind"] == "b")
        output = loss + noise * rng.standard_normal()
        found.append(Observation(params=params, output=float(output), cost=size))
    # Repeats have a row of their own in the data, with less noise.
    return [*found, found[0], found[0]]


def surrogate(seed: int, n: int, kind: str) -> Surrogate:
    earlier = EarlierSweep(observations=tuple(runs(seed + 1, n))).seen_from(SPACE, "minimize")
    fitted = fit_surrogate(SPACE, runs(seed, n), (), [earlier] if kind == "earlier" else [])
    rng = np.random.default_rng(seed)
    if kind == "drawn":
        return fitted.drawn(rng)
    if kind == "pending":
        return fitted.condition(SPACE.snap(rng.normal(0, 1, (3, SPACE.n_dims))))
    return fitted


def points(seed: int, *shape: int) -> FloatArray:
    return np.random.default_rng(seed).normal(0, 1.5, (*shape, SPACE.n_dims))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(3, 30),
    st.sampled_from(["plain", "earlier", "drawn", "pending"]),
)
def test_means_and_deviations_are_ours(seed: int, n: int, kind: str) -> None:
    ours = surrogate(seed, n, kind)
    Z = points(seed, 9)
    posterior = ours.to_botorch().posterior(torch.tensor(Z))
    for outcome, (mean, std) in enumerate((ours.warped_output(Z), ours.log_cost(Z))):
        assert posterior.mean[:, outcome].numpy() == pytest.approx(mean, abs=1e-6, rel=1e-6)
        variance = posterior.variance[:, outcome].numpy()
        assert np.sqrt(variance) == pytest.approx(std, abs=2e-6, rel=1e-6)


def test_it_compares_learning_rates_beside_the_best_ones_for_the_size() -> None:
    space = SearchSpace([Param(name, LogSpace(), 1.0) for name in ("n_params", "lr")])
    Z = space.snap(np.random.default_rng(0).normal(0, 1, (20, 2)))
    told = [
        Observation(
            params=space.decode(z), output=2 + float(z[1] + 0.5 * z[0]) ** 2, cost=float(10 ** z[0])
        )
        for z in Z[:12]
    ]
    ours = fit_surrogate(space, told)
    assert ours.axes[0, 1] == 0.5
    mean, _ = ours.warped_output(Z)
    theirs = ours.to_botorch().posterior(torch.tensor(Z)).mean[:, 0].numpy()
    assert theirs == pytest.approx(mean, abs=1e-6, rel=1e-6)


def test_points_are_known_together() -> None:
    """What is asked jointly agrees with what conditioning on one says of the other."""
    ours, Z = surrogate(0, 12, "plain"), points(0, 2)
    covariance = ours.to_botorch().posterior(torch.tensor(Z)).mvn.covariance_matrix[:2, :2].numpy()
    noise = ours.output_process.noise
    known = ours.condition(Z[:1]).warped_output(Z[1:])[1][0]
    expected = covariance[1, 1] - covariance[0, 1] ** 2 / (covariance[0, 0] + noise)
    assert known**2 == pytest.approx(expected, rel=1e-5)


def test_its_gradient_is_that_of_our_posterior() -> None:
    ours, Z, step = surrogate(1, 15, "plain"), points(1, 1), 1e-5
    X = torch.tensor(Z, requires_grad=True)
    ours.to_botorch().posterior(X).mean[0, 0].backward()
    assert X.grad is not None
    for i in range(SPACE.n_dims):
        move = np.zeros_like(Z)
        move[0, i] = step
        above, below = (ours.warped_output(Z + sign * move)[0][0] for sign in (1, -1))
        assert X.grad[0, i].item() == pytest.approx((above - below) / (2 * step), abs=1e-5)


def test_it_takes_batches_and_one_outcome_at_a_time() -> None:
    ours, Z = surrogate(2, 10, "plain"), points(2, 4, 3)
    model = ours.to_botorch()
    assert model.num_outputs == 2
    posterior = model.posterior(torch.tensor(Z))
    assert posterior.mean.shape == (4, 3, 2)
    assert posterior.rsample(torch.Size([5])).shape == (5, 4, 3, 2)
    flat = ours.log_cost(Z.reshape(12, -1))[0].reshape(4, 3)
    cost = model.subset_output([1]).posterior(torch.tensor(Z)).mean[..., 0].numpy()
    assert cost == pytest.approx(flat)


BOUNDS = torch.tensor([[-2.0], [2.0]], dtype=torch.float64).expand(2, SPACE.n_dims)


def best_of(score: torch.nn.Module, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        best: tuple[torch.Tensor, torch.Tensor]
        best = optimize_acqf(score, BOUNDS, q=1, num_restarts=2, raw_samples=16)
    return best


def test_expected_improvement_runs_on_it() -> None:
    ours = surrogate(3, 15, "plain")
    seen = SPACE.encode_all([run.params for run in runs(3, 15)])
    lowest = ours.warped_output(seen)[0].min()
    score = qLogExpectedImprovement(
        ours.to_botorch(),
        best_f=-lowest,
        sampler=SobolQMCNormalSampler(torch.Size([64]), seed=0),
        objective=LinearMCObjective(torch.tensor([-1.0, 0.0], dtype=torch.float64)),
    )
    point, value = best_of(score)
    assert torch.equal(point, best_of(score)[0])
    inside = torch.tensor(points(3, 20)).clamp(-2.0, 2.0)
    assert value > score(inside[:, None, :]).max() - 1e-6


# What was measured without noise is known exactly, and drawn together with a little jitter.
@pytest.mark.filterwarnings("ignore:A not p.d.")
def test_hypervolume_improvement_runs_on_it() -> None:
    ours = surrogate(4, 15, "plain")
    seen = SPACE.encode_all([run.params for run in runs(4, 15)])
    score = qLogNoisyExpectedHypervolumeImprovement(
        ours.to_botorch(),
        ref_point=[-3.0, -3.0],
        X_baseline=torch.tensor(seen),
        prune_baseline=True,
        sampler=SobolQMCNormalSampler(torch.Size([8]), seed=0),
        objective=WeightedMCMultiOutputObjective(torch.tensor([-1.0, -1.0], dtype=torch.float64)),
    )
    point, value = best_of(score)
    assert point.shape == (1, SPACE.n_dims)
    assert torch.isfinite(value)
