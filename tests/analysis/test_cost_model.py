"""Costs far beyond the runs: products of powers, beside many parameters that cost nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from carbs import LogitSpace, LogSpace, Param, SearchSpace
from carbs.analysis.front.cost_model import CostModel
from carbs.analysis.front.growth import growth, growth_of
from carbs.roles import role_of
from carbs.search_space import Role
from carbs.spaces import FloatArray


def measured(
    names: tuple[str, ...], exponents: dict[str, float], noise: float, seed: int, n: int = 100
) -> tuple[SearchSpace, FloatArray, FloatArray]:
    """Runs of a search whose sizes grow together, and what they cost."""
    rng = np.random.default_rng(seed)
    space = SearchSpace([Param(name, LogSpace(scale=0.5), 1.0) for name in names])
    scale = rng.uniform(0, 1.5, n)
    params = []
    for c in scale:
        values = {name: 10 ** (0.3 * rng.standard_normal()) for name in names}
        values |= {name: values[name] * 10 ** (c / 2) for name in exponents}
        params.append(values)
    costs = [math.prod(values[k] ** e for k, e in exponents.items()) for values in params]
    return space, space.encode_all(params), np.array(costs) * np.exp(noise * rng.standard_normal(n))


OTHERS = tuple(f"x{i}" for i in range(12))


@pytest.mark.parametrize("seed", range(4))
def test_noise_is_not_taken_for_a_function_of_many_parameters(seed: int) -> None:
    exponents = {"n_params": 1.0, "tokens": 1.0}
    space, Z, costs = measured(("n_params", "tokens", *OTHERS), exponents, 0.3, seed)
    model = CostModel.fit(space, Z, costs)
    far = {"n_params": 100.0, "tokens": 100.0} | dict.fromkeys(OTHERS, 1.5)
    low, middle, high = model.quantiles(space.encode(far)[None], (0.05, 0.5, 0.95))[0]
    assert middle == pytest.approx(1e4, rel=0.3)
    assert low < 1e4 < high < 5 * low


@pytest.mark.parametrize("seed", range(4))
def test_exponents_that_no_name_gives_away_are_learned(seed: int) -> None:
    space, Z, costs = measured(("a", "b", *OTHERS), {"a": 1.5, "b": 0.7}, 0.02, seed)
    model = CostModel.fit(space, Z, costs)
    assert model.mean_exponents()[:2] == pytest.approx([1.5, 0.7], abs=0.05)
    assert np.abs(model.mean_exponents()[2:]).max() < 0.05
    far = {"a": 100.0, "b": 100.0} | dict.fromkeys(OTHERS, 1.5)
    found = model.quantiles(space.encode(far)[None], (0.5,))[0, 0]
    assert found == pytest.approx(100.0**2.2, rel=0.15)


def test_of_a_thousand_runs_some_of_every_cost_tell_the_law() -> None:
    names = ("n_params", "tokens", *OTHERS)
    space, Z, costs = measured(names, {"n_params": 1.0, "tokens": 1.0}, 0.1, 0, n=1000)
    far = space.encode({"n_params": 100.0, "tokens": 100.0} | dict.fromkeys(OTHERS, 1.5))[None]
    model = CostModel.fit(space, Z, costs)
    assert model.quantiles(far, (0.5,))[0, 0] == pytest.approx(1e4, rel=0.05)


def test_runs_that_were_ended_at_a_cap_would_have_cost_more() -> None:
    """Of noisy costs near a cap those are known that came out cheap."""
    misses = []
    for seed in range(8):
        names = ("n_params", "tokens", *OTHERS)
        space, Z, costs = measured(names, {"n_params": 1.0, "tokens": 1.0}, 0.3, seed, n=300)
        cap = float(np.quantile(costs, 0.7))
        known, ended = costs < cap, (Z[costs >= cap], np.full(int(sum(costs >= cap)), cap))
        far = space.encode({"n_params": 100.0, "tokens": 100.0} | dict.fromkeys(OTHERS, 1.5))[None]
        fits = [CostModel.fit(space, Z[known], costs[known], ended=e) for e in (None, ended)]
        misses.append([math.log(fit.quantiles(far, (0.5,))[0, 0] / 1e4) for fit in fits])
    without, told = np.mean(misses, axis=0)
    assert without < -0.15
    assert abs(told) < 0.05


def test_what_ended_for_another_reason_says_nothing_of_its_cost() -> None:
    """One that hung for ten times as long as others, and those that soon ran out of memory."""
    space, Z, costs = measured(("a", "b"), {"a": 1.0, "b": 1.0}, 0.02, 0)
    z = space.encode_all([{"a": 2.0, "b": 2.0}] * 3)
    told = CostModel.fit(space, Z, costs, ended=(z, np.array([40.0, 0.01, 0.0])))
    assert told.log10(z).tolist() == CostModel.fit(space, Z, costs).log10(z).tolist()


def test_runs_overrule_what_a_role_says() -> None:
    space, Z, costs = measured(("width", "tokens"), {"width": 1.0, "tokens": 1.0}, 0.02, 0)
    assert CostModel.fit(space, Z, costs).mean_exponents() == pytest.approx([1.0, 1.0], abs=0.05)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("known", [None, "n_params * tokens"])
def test_small_models_waste_the_machine_and_large_ones_do_not(seed: int, known: str | None) -> None:
    """A token costs as N + 3 N^0.3, in runs of N around 1 and far above."""
    names = ("n_params", "tokens", *OTHERS)
    space, Z, costs = measured(names, {"n_params": 1.0, "tokens": 1.0}, 0.02, seed)
    n_params = np.array([space.decode(z)["n_params"] for z in Z])
    costs *= 1 + 3 * n_params**-0.7
    known_cost = None if known is None else SearchSpace(space.params, cost=known).log10_cost
    model = CostModel.fit(space, Z, costs, known=known_cost)
    far = space.encode({"n_params": 1e3, "tokens": 1e3} | dict.fromkeys(OTHERS, 1.5))[None]
    low, middle, high = model.quantiles(far, (0.05, 0.5, 0.95))[0]
    assert middle == pytest.approx(1e6 * (1 + 3 * 1e3**-0.7), rel=0.1)
    assert low < middle < high < 1.5 * low


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("driver", ["tokens", "trees"])
def test_what_no_name_tells_of_drives_a_cost_with_an_overhead(seed: int, driver: str) -> None:
    rng = np.random.default_rng(seed)
    space = SearchSpace([Param(name, LogSpace(scale=0.4), 1.0) for name in (driver, "e", "x", "y")])
    params = [space.decode(2.5 * rng.uniform(0, 1.5, 4)) for _ in range(60)]
    costs = np.array([5 + values[driver] * values["e"] ** 0.6 for values in params])
    costs *= np.exp(0.1 * rng.standard_normal(60))
    model = CostModel.fit(space, space.encode_all(params), costs)
    far = space.encode({driver: 1e3, "e": 1e2, "x": 1.0, "y": 1.0})[None]
    assert model.quantiles(far, (0.5,))[0, 0] == pytest.approx(1e3 * 1e2**0.6, rel=0.3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overhead", [0.0, 5.0])
def test_what_is_known_of_a_cost_is_used(seed: int, overhead: float) -> None:
    """No name gives the exponents away, and the noise is large: 100 runs alone do not tell them."""
    exponents, noise = {"a": 1.5, "b": 0.7}, 0.3
    space, Z, costs = measured(("a", "b", *OTHERS), exponents, noise, seed)
    known = SearchSpace(space.params, cost="2 * a ** 1.5 * b ** 0.7")
    model = CostModel.fit(space, Z, costs + overhead, known=known.log10_cost)
    far = space.encode({"a": 1e3, "b": 1e3} | dict.fromkeys(OTHERS, 1.5))[None]
    low, middle, high = model.quantiles(far, (0.05, 0.5, 0.95))[0]
    assert middle == pytest.approx(1e3**2.2, rel=0.25)
    assert low < 1e3**2.2 < high < 4 * low
    assert model.mean_exponents()[:2] == pytest.approx([1.5, 0.7], abs=0.05)


def test_a_cost_that_is_known_exactly_is_met_exactly() -> None:
    space, Z, costs = measured(("a", "b"), {"a": 1.5, "b": 0.7}, 0.0, 0)
    known = SearchSpace(space.params, cost="a ** 1.5 * b ** 0.7")
    model = CostModel.fit(space, Z, costs, known=known.log10_cost)
    far = space.encode({"a": 1e3, "b": 1e3})[None]
    assert model.quantiles(far, (0.05, 0.95))[0] == pytest.approx(1e3**2.2, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("n_params", "parameters"),
        ("params", "parameters"),
        ("numParameters", "parameters"),
        ("n_active_params", "parameters"),
        ("active_parameters", "parameters"),
        ("non_embedding_params", "parameters"),
        ("total_params", "none"),
        ("N", "parameters"),
        ("D", "tokens"),
        ("train_tokens", "tokens"),
        ("d_model", "width"),
        ("hiddenSize", "width"),
        ("model__n_layers", "depth"),
        ("model.d_model", "width"),
        ("learning_rate", "learning_rate"),
        ("optim.lr", "learning_rate"),
        ("base_lr", "learning_rate"),
        ("batchSize", "batch_size"),
        ("lr_decay", "none"),
        ("dropout", "none"),
        ("depth_scale", "none"),
    ],
)
def test_a_role_is_guessed_from_the_name(name: str, role: Role) -> None:
    assert role_of(Param(name, LogSpace(), 1.0)) == role


def test_a_role_that_is_stated_counts_and_other_spaces_have_none() -> None:
    assert role_of(Param("size", LogSpace(), 1.0, role="width")) == "width"
    assert role_of(Param("tokens", LogSpace(), 1.0, role="none")) == "none"
    assert role_of(Param("width", LogitSpace(), 0.5)) == "none"


def sized(*names: str) -> SearchSpace:
    return SearchSpace([Param(name, LogSpace(scale=0.5), 1.0) for name in names])


def test_how_sizes_grow_is_known_where_both_kinds_are_searched() -> None:
    """In decades for a decade of cost; N is width squared times depth."""
    whole = growth_of(sized("width", "depth", "tokens", "lr"), np.array([2.0, 1.0, 1.0, -0.01]))
    assert {name: round(mean, 3) for name, (mean, _) in whole.items()} == {
        "width": 0.167,
        "depth": 0.167,
        "tokens": 0.5,
        "lr": -0.15,
    }
    assert growth_of(sized("width", "tokens"), np.array([2.0, 1.0]))["width"][0] == 0.25
    assert growth_of(sized("depth", "tokens"), np.array([1.0, 1.0]))["depth"][0] == 0.5
    assert growth_of(sized("tokens", "lr"), np.array([1.0, 0.0])) == {}
    means, deviations = growth(sized("N", "x", "D"), np.ones(3))
    assert means.tolist() == [1.0, 0.0, 1.0]  # half a decade is a basic unit
    assert np.isfinite(deviations).tolist() == [True, False, True]


def test_where_a_size_costs_less_all_grow_faster_with_the_cost() -> None:
    """N and D grow alike: where N to the power of .5 is what costs, N^.5 D is C, N is C^(2/3)."""
    usual = growth_of(sized("N", "D", "lr"), np.ones(3))
    cheap = growth_of(sized("N", "D", "lr"), np.array([0.5, 1.0, 0.0]))
    assert cheap["N"][0] == cheap["D"][0] == pytest.approx(2 / 3)
    for name, (mean, deviation) in usual.items():
        assert cheap[name] == pytest.approx((mean * 4 / 3, deviation * 4 / 3))


def test_what_does_not_cost_what_its_name_says_has_no_role() -> None:
    assert growth_of(sized("depth", "tokens"), np.array([0.1, 1.0])) == {}
