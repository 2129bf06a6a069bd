"""The surrogate on data from known laws: calibration, conditioning, repeatability."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carbs import Failure, LinearSpace, LogSpace, Observation, Param, SearchSpace
from carbs.gaussian_process import Data, GaussianProcess, fit_kernel
from carbs.roles import comparable
from carbs.search_space import Role
from carbs.spaces import FloatArray
from carbs.surrogate import Surrogate, fit_surrogate

SPACE = SearchSpace(
    [Param("size", LogSpace(scale=0.5), 100.0), Param("rate", LogSpace(scale=0.5), 1e-2)]
)
NOISE = 0.01


def law(Z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Loss and cost at basic points: a power law in size, a valley in the learning rate."""
    size, rate = 10 ** (2 + 0.5 * Z[:, 0]), 0.5 * Z[:, 1]
    return 1.5 + 3 * size**-0.35 + 0.3 * (rate + 0.2) ** 2, 0.02 * size**1.1


def measure(n: int, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    Z = rng.uniform([-1, -1.5], [3, 1.5], size=(n, 2))
    outputs, costs = law(Z)
    return Z, outputs * np.exp(NOISE * rng.normal(size=n)), costs * np.exp(0.1 * rng.normal(size=n))


def observations(Z: FloatArray, outputs: FloatArray, costs: FloatArray) -> list[Observation]:
    return [
        Observation(params=SPACE.decode(z), output=float(output), cost=float(cost))
        for z, output, cost in zip(Z, outputs, costs, strict=True)
    ]


def sized(*names: str) -> SearchSpace:
    return SearchSpace([Param(name, LogSpace(scale=0.5), 1.0) for name in names])


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return fit_surrogate(SPACE, observations(*measure(40, seed=0)))


def test_nine_in_ten_new_measurements_fall_into_their_intervals() -> None:
    inside_output, inside_cost, widths = [], [], []
    center_loss = law(SPACE.center[None, :])[0][0]
    for seed in range(5):
        fitted = fit_surrogate(SPACE, observations(*measure(32, seed)))
        Z, outputs, costs = measure(100, seed=100 + seed)
        # What is worse than the centre is drawn in before it is fitted, and so not predicted well.
        matters = outputs < center_loss
        Z, outputs, costs = Z[matters], outputs[matters], costs[matters]
        low, high = fitted.output_quantiles(Z, [0.05, 0.95]).T
        inside_output += ((low < outputs) & (outputs < high)).tolist()
        widths += (high - low).tolist()
        low, high = fitted.cost_quantiles(Z, [0.05, 0.95]).T
        inside_cost += ((low < costs) & (costs < high)).tolist()
    assert 0.75 <= np.mean(inside_output) <= 0.98
    assert 0.75 <= np.mean(inside_cost) <= 0.98
    # Not by being vague: the losses themselves span about 1.
    assert np.median(widths) < 0.2


def test_beyond_the_data_the_trend_goes_on(surrogate: Surrogate) -> None:
    # A decade and a half above the largest size seen.
    beyond = np.array([[6.0, -0.4]])
    outputs, costs = law(beyond)
    low, high = surrogate.output_quantiles(beyond, [0.05, 0.95])[0]
    assert low < outputs[0] < high
    assert surrogate.cost_quantiles(beyond, [0.5])[0, 0] == pytest.approx(costs[0], rel=0.3)
    # Farther out less is certain.
    _, near = surrogate.warped_output(np.array([[2.0, -0.4]]))
    _, far = surrogate.warped_output(beyond)
    assert far > 2 * near


def test_quantiles_rise_with_their_level(surrogate: Surrogate) -> None:
    Z = np.random.default_rng(5).uniform(-4, 6, size=(50, 2))
    levels = [0.01, 0.05, 0.3, 0.5, 0.7, 0.95, 0.99]
    for quantiles in (
        surrogate.output_quantiles(Z, levels),
        surrogate.output_quantiles(Z, levels, with_noise=False),
        surrogate.cost_quantiles(Z, levels),
    ):
        assert quantiles.shape == (50, len(levels))
        assert np.all(np.diff(quantiles, axis=1) > 0)
    # A measurement is less certain than the function.
    noisy = np.ptp(surrogate.output_quantiles(Z, [0.05, 0.95]), axis=1)
    function = np.ptp(surrogate.output_quantiles(Z, [0.05, 0.95], with_noise=False), axis=1)
    assert np.all(noisy > function)


@pytest.mark.parametrize("n_new", [1, 5])
def test_conditioning_equals_starting_with_all_the_data(n_new: int) -> None:
    Z, outputs, costs = measure(20 + n_new, seed=1)
    Y = np.stack([outputs - 2, np.log(costs)], axis=1)
    kernel = fit_kernel(Data.pooled(Z[:20], Y[:20, :1]))
    extended = GaussianProcess(kernel, Data.pooled(Z[:20], Y[:20])).condition(Z[20:], Y[20:])
    whole = GaussianProcess(kernel, Data.pooled(Z, Y))
    queries = np.random.default_rng(2).uniform(-3, 5, size=(30, 2))
    for a, b in zip(extended.posterior(queries), whole.posterior(queries), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(
        extended.log_marginal_likelihood(), whole.log_marginal_likelihood(), rtol=1e-8
    )


def test_an_earlier_sweep_is_distrusted_as_it_disagrees() -> None:
    Z, outputs, _ = measure(40, seed=3)
    y = (outputs - outputs.mean()) / outputs.std()
    sweep = np.repeat([[0.0], [1.0]], 20, axis=0)

    def distrust(sign: float) -> float:
        Y = np.where(sweep == 0, 1, sign) * y[:, None]
        return float(fit_kernel(Data.pooled(np.hstack([Z, sweep]), Y, n_sweeps=1)).distrust[0])

    assert distrust(1) < 0.05
    assert distrust(-1) > 1


def test_conditioning_leaves_the_original_as_it_was(surrogate: Surrogate) -> None:
    Z = np.array([[0.3, 0.1], [4.0, 0.0]])
    before, spread_before = surrogate.warped_output(Z)
    conditioned = surrogate.condition(Z)
    after, spread_after = conditioned.warped_output(Z)
    # The pending points came out as predicted: no news but certainty.
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert np.all(spread_after < spread_before)
    np.testing.assert_array_equal(surrogate.warped_output(Z)[1], spread_before)


def test_success_is_likelier_where_runs_succeeded() -> None:
    Z, outputs, costs = measure(24, seed=3)
    fails = Z[:, 1] > 0.5
    failures = [Failure(params=SPACE.decode(z), reason="diverged") for z in Z[fails]]
    fitted = fit_surrogate(SPACE, observations(Z[~fails], outputs[~fails], costs[~fails]), failures)
    good = fitted.success_probability(np.array([[1.0, -1.0], [0.0, -0.5], [2.0, -0.8]]))
    bad = fitted.success_probability(np.array([[1.0, 1.2], [0.0, 1.3], [2.0, 1.0]]))
    assert good.min() > 0.8
    assert bad.max() < 0.4


def test_without_failures_success_is_certain(surrogate: Surrogate) -> None:
    assert surrogate.success_probability(np.zeros((3, 2))).tolist() == [1, 1, 1]


def test_one_failure_lowers_the_odds_next_to_it_and_hardly_far_away() -> None:
    Z, outputs, costs = measure(12, seed=4)
    failed = np.array([3.0, 3.0])
    failure = Failure(params=SPACE.decode(failed), reason="out of memory")
    fitted = fit_surrogate(SPACE, observations(Z, outputs, costs), [failure])
    at, far = fitted.success_probability(np.array([failed, [-0.5, -1.0]]))
    assert at < 0.5 < 0.9 < far


def test_a_fit_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    legacy = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    Z, outputs, costs = measure(9, seed=8)
    failure = Failure(params=SPACE.decode(Z[0]), reason="diverged")
    fit_surrogate(SPACE, observations(Z, outputs, costs), [failure]).output_quantiles(Z, [0.5])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], legacy)  # type: ignore[index]  # noqa: NPY002


def test_predictions_do_not_depend_on_the_global_seeds() -> None:
    predictions = []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  # the global state is the point
        Z, outputs, costs = measure(12, seed=9)
        # Fitted anew, whatever is cached: a shift of all outputs that rounding does not see.
        fitted = fit_surrogate(SPACE, observations(Z, outputs + seed * 1e-13, costs))
        predictions.append(fitted.output_quantiles(Z, [0.1, 0.9]))
    np.testing.assert_allclose(predictions[0], predictions[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "costs"),
    [
        ([1.0] * 12, [1.0] * 12),
        ([1e-12 * k for k in range(1, 13)], [1e-6] * 12),
        ([1e12 + 1e9 * k for k in range(12)], [10.0 ** (k - 6) for k in range(12)]),
        ([1e300, *range(11)], [1.0] * 12),
        ([-5.0 - k for k in range(12)], [1.0] * 12),
    ],
    ids=["identical", "tiny", "huge", "one of 1e300", "negative"],
)
def test_strange_measurements_give_finite_predictions(
    outputs: list[float], costs: list[float]
) -> None:
    space = SearchSpace([Param("x", LinearSpace(), 0.0)])
    data = [
        Observation(params={"x": x}, output=output, cost=cost)
        for x, output, cost in zip(np.linspace(-2, 2, 12).tolist(), outputs, costs, strict=True)
    ]
    fitted = fit_surrogate(space, data)
    Z = np.linspace(-3, 3, 7)[:, None]
    for quantiles in (
        fitted.output_quantiles(Z, [0.05, 0.5, 0.95]),
        fitted.cost_quantiles(Z, [0.05, 0.5, 0.95]),
    ):
        assert np.all(np.isfinite(quantiles))
        assert np.all(np.diff(quantiles, axis=1) >= 0)


def test_a_learning_rate_is_compared_beside_the_best_one_for_the_size() -> None:
    """Sixteen times the parameters and a quarter of the rate: the same place on its axis."""
    for names, of_size in ((("N", "D", "lr"), 16.0), (("width", "D", "lr"), 4.0)):
        space = sized(*names)
        small, large = (dict.fromkeys(names, 1.0) for _ in range(2))
        large |= {names[0]: of_size, "lr": 0.25}
        places = space.encode_all([small, large]) @ comparable(space)
        assert places[0, 2] == pytest.approx(places[1, 2])
        assert places[:, :2].tolist() == space.encode_all([small, large])[:, :2].tolist()
    for names in (("N", "D", "x"), ("D", "lr")):
        assert comparable(sized(*names)).tolist() == np.eye(len(names)).tolist()
    none = SearchSpace([Param("N", LogSpace(), 1.0), Param("lr", LogSpace(), 1.0, role="none")])
    assert comparable(none).tolist() == np.eye(2).tolist()


@pytest.mark.parametrize("falls", [0.0, 0.5])
def test_what_is_known_of_learning_rates_yields_to_the_runs(falls: float) -> None:
    space, rng = sized("N", "D", "lr"), np.random.default_rng(0)
    runs = []
    for _ in range(30):
        size, rate = 10 ** rng.uniform(0, 1.5), 10 ** rng.uniform(-1.5, 0.5)
        loss = 1 + size**-0.3 + 0.3 * np.log10(rate * size**falls) ** 2
        params = {"N": size, "D": 1.0, "lr": rate}
        runs.append(Observation(params=params, output=loss, cost=size))
    axes = fit_surrogate(space, runs).axes
    assert axes[0, 2] == falls


def test_small_models_tell_of_the_best_learning_rate_of_large_ones() -> None:
    """Each size is tried at three rates about its best, and none at the largest's best."""

    def fitted(role: Role | None) -> Surrogate:
        space = SearchSpace(
            [
                Param("N", LogSpace(scale=0.5), 1.0),
                Param("D", LogSpace(scale=0.5), 1.0),
                Param("lr", LogSpace(scale=0.5), 1.0, role=role),
            ]
        )
        runs = []
        for size in 10 ** np.linspace(0, 1.5, 7):
            for beside in (0.5, 1.0, 2.0):
                rate = beside * size**-0.5
                loss = 1 + size**-0.3 + 0.3 * np.log10(beside) ** 2
                params = {"N": size, "D": 1.0, "lr": rate}
                runs.append(Observation(params=params, output=loss, cost=size))
        return fit_surrogate(space, runs)

    large = [{"N": 300.0, "D": 1.0, "lr": rate} for rate in (300**-0.5, 1.0)]
    space = sized("N", "D", "lr")
    gains = []
    for role in (None, "none"):
        low, high = fitted(role).output_quantiles(space.encode_all(large), [0.5])[:, 0]
        gains.append(high - low)
    truth = 0.3 * np.log10(300**0.5) ** 2
    assert abs(gains[0] - truth) < abs(gains[1] - truth)
    assert gains[0] > 0.5 * truth
