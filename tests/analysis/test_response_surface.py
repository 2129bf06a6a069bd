"""The response surface around the front, on runs whose loss is one."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from carbs import Failure, LogSpace, Observation, Param, SearchSpace
from carbs.analysis.front.response_surface import CostModel, ResponseSurface

SPACE = SearchSpace(
    [
        Param("size", LogSpace(), 1.0),
        Param("steps", LogSpace(), 1.0),
        Param("rate", LogSpace(), 1.0),
    ]
)


def loss(size: float, steps: float, rate: float) -> float:
    bowl = 0.2 * math.log10(rate / size**-0.5) ** 2
    return 1.0 + size**-0.3 + steps**-0.3 + bowl


def runs(seed: int, n: int = 90, overhead: float = 0.0) -> list[Observation]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        compute = 10 ** rng.uniform(-0.5, 2.0)
        size = math.sqrt(compute) * 10 ** (0.2 * rng.standard_normal())
        rate = size**-0.5 * 10 ** (0.3 * rng.standard_normal())
        params = {"size": size, "steps": compute / size, "rate": rate}
        output = loss(**params) + 0.003 * rng.standard_normal()
        found.append(Observation(params=params, output=output, cost=overhead + compute))
    return found


def test_a_fixed_overhead_is_told_from_the_cost_and_does_not_bend_it() -> None:
    known = runs(0, overhead=3.0)
    Z = SPACE.encode_all([run.params for run in known])
    costs = np.array([run.cost for run in known])
    model = CostModel.fit(SPACE, Z, costs)
    assert model.overhead == pytest.approx(3.0, rel=0.15)
    far = SPACE.encode_all([{"size": 100.0, "steps": 100.0, "rate": 0.1}])
    low, middle, high = model.quantiles(far, (0.05, 0.5, 0.95))[0]
    assert middle == pytest.approx(1e4 + 3, rel=0.1)
    assert low < 1e4 + 3 < high
    assert CostModel.fit(SPACE, Z, costs - 3.0).overhead == 0.0


def test_noisy_costs_of_an_overhead_do_not_bend_the_powers() -> None:
    """Noise of 30%, an overhead above a third of the costs, some of which come out below it."""
    far = SPACE.encode_all([{"size": 60.0, "steps": 60.0, "rate": 0.1}])
    product = SearchSpace(SPACE.params, cost="size * steps")
    off = []
    for seed in range(12):
        known = runs(seed, overhead=3.0)
        Z = SPACE.encode_all([run.params for run in known])
        noise = np.exp(0.3 * np.random.default_rng(seed).standard_normal(len(known)))
        costs = noise * np.array([run.cost for run in known])
        assert costs.min() < 3.0
        median = CostModel.fit(SPACE, Z, costs, known=product.log10_cost)
        off.append(math.log(median.quantiles(far, (0.5,))[0, 0] / 3603.0))
    assert np.abs(off).max() < 0.25
    assert abs(np.mean(off)) < 0.05


def test_it_holds_the_loss_of_the_best_run_at_thirty_times_the_cost() -> None:
    inside = 0
    for seed in range(4):
        surface = ResponseSurface.of(SPACE, runs(seed))
        size = math.sqrt(3000.0)
        params = {"size": size, "steps": size, "rate": size**-0.5}
        low, high = surface.quantiles(SPACE.encode_all([params]), (0.05, 0.95))[0]
        inside += low <= loss(**params) <= high
        assert high - low < 0.5
    assert inside >= 3


def test_runs_in_their_first_transient_do_not_bend_the_law() -> None:
    """The loss of cheap runs hardly falls yet: their front is flat, and no law of powers."""

    def early(size: float, steps: float, rate: float) -> float:
        return 0.5 + 2.5 * (size * steps + 3.0) ** -0.35 + 0.2 * math.log10(rate * size**0.5) ** 2

    off = []
    for seed in range(4):
        known = [
            run.model_copy(update={"output": early(**run.params) + 0.005 * math.sin(37 * i)})  # type: ignore[arg-type]
            for i, run in enumerate(runs(seed))
            if run.cost < 16
        ]
        surface = ResponseSurface.of(SPACE, known)
        size = math.sqrt(8 * 16)
        params = {"size": size, "steps": size, "rate": size**-0.5}
        low, middle, high = surface.quantiles(SPACE.encode_all([params]), (0.05, 0.5, 0.95))[0]
        off.append(middle / early(**params) - 1)
        assert low < early(**params) < high and high - low < 0.3
    assert abs(np.mean(off)) < 0.05 and np.abs(off).max() < 0.1


def test_runs_that_hardly_tell_leave_steep_laws_as_unlikely_as_they_are_elsewhere() -> None:
    """Sixteen runs over less than a decade, with noise of a tenth."""
    steep = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        known = []
        for _ in range(16):
            compute = 10 ** rng.uniform(0, 0.7)
            size = math.sqrt(compute) * 10 ** (0.2 * rng.standard_normal())
            params = {"size": size, "steps": compute / size, "rate": size**-0.5}
            output = loss(**params) + 0.2 * rng.standard_normal()
            known.append(Observation(params=params, output=output, cost=compute))
        forms = ResponseSurface.of(SPACE, known).forms
        steep.append(sum(form.weight for form in forms if form.g > 0.45))
    assert np.mean(steep) < 0.28


def test_what_was_ended_at_the_cap_makes_the_next_one_dearer() -> None:
    """Half of the runs of 8 by 8 cost less than 60, by noise; half were ended there."""
    at = {"size": 8.0, "steps": 8.0, "rate": 0.3}
    noisy = [
        run.model_copy(update={"cost": run.cost * math.exp(0.2 * (-1) ** i)})
        for i, run in enumerate(runs(0))
    ]
    ended = [Failure(params=at, reason="too dear", cost=60.0)] * 8
    z = SPACE.encode_all([at])
    plain = ResponseSurface.of(SPACE, noisy).cost.log10(z)[0]
    assert ResponseSurface.of(SPACE, noisy, failures=ended).cost.log10(z)[0] > plain + 0.01
    soon = [failure.model_copy(update={"cost": 1.0}) for failure in ended]
    unknown = [failure.model_copy(update={"cost": None}) for failure in ended]
    for failures in (soon, unknown):
        assert ResponseSurface.of(SPACE, noisy, failures=failures).cost.log10(z)[0] == plain


@pytest.mark.parametrize("terrible", [10.0, 1e6, 1e300])
@pytest.mark.parametrize("first", [0, 40, 88])
def test_runs_that_diverged_do_not_bend_the_law(terrible: float, first: int) -> None:
    """Even if they are the cheapest ones, which nothing cheaper says that they are bad."""
    known = sorted(runs(0), key=lambda run: run.cost)
    z = SPACE.encode_all([{"size": 30.0, "steps": 30.0, "rate": 30.0**-0.5}])
    low, middle, high = ResponseSurface.of(SPACE, known).quantiles(z, (0.05, 0.5, 0.95))[0]
    for i in (first, first + 1):
        known[i] = known[i].model_copy(update={"output": terrible * (1 + 0.1 * i)})
    found = ResponseSurface.of(SPACE, known).quantiles(z, (0.05, 0.5, 0.95))[0]
    assert found[1] == pytest.approx(middle, abs=0.05)
    assert found[2] - found[0] < 2 * (high - low)


def test_chart_and_points_are_inverse() -> None:
    surface = ResponseSurface.of(SPACE, runs(0))
    Z = surface.Z[:10]
    c, s = surface.chart.beside(Z)
    np.testing.assert_allclose(surface.chart.points(c, s), Z, atol=1e-4)


def test_a_dearer_run_tells_more_of_the_large_one_than_a_cheap_one_and_none_tells_all() -> None:
    surface = ResponseSurface.of(SPACE, runs(0))
    points = [
        SPACE.encode({"size": math.sqrt(c), "steps": math.sqrt(c), "rate": c**-0.25})
        for c in (1.0, 300.0, 3000.0)
    ]
    cheap, near, _ = (surface.tells(z, points[-1]) for z in points)
    assert 0 <= cheap < near < 1


def test_the_best_learning_rate_is_found_for_each_size_of_the_model() -> None:
    """By its role it is compared with the best one for the size; the optimum is where it was."""
    named = [Param(name, LogSpace(), 1.0) for name in ("N", "D", "lr")]
    names = {"size": "N", "steps": "D", "rate": "lr"}
    surfaces = [ResponseSurface.of(SPACE, runs(1))]
    renamed = [
        run.model_copy(update={"params": {names[k]: v for k, v in run.params.items()}})
        for run in runs(1)
    ]
    surfaces.append(ResponseSurface.of(SearchSpace(named), renamed))
    assert np.abs(surfaces[1].axes - np.eye(3)).sum() == pytest.approx(0.5)
    for surface in surfaces:
        c = np.array([0.0, 1.0, 2.0])
        Z = surface.chart.points(c, surface.best(c, None)[0])
        assert Z[:, 2] + 0.5 * Z[:, 0] == pytest.approx([0.0, 0.0, 0.0], abs=0.15)


@pytest.mark.parametrize("n_rates", [2, 16])
def test_of_many_hyperparameters_a_plan_has_some_wrong_and_it_expects_that(n_rates: int) -> None:
    rng = np.random.default_rng(0)
    names = [f"rate_{i}" for i in range(n_rates)]
    space = SearchSpace([Param(name, LogSpace(), 1.0) for name in ("tokens", *names)])
    known = []
    for _ in range(60):
        params = {name: 10 ** (0.4 * rng.standard_normal()) for name in names}
        params["tokens"] = 10 ** rng.uniform(-0.5, 2.0)
        bowl = sum(math.log10(params[name]) ** 2 for name in names)
        output = 1 + params["tokens"] ** -0.3 + 0.1 * bowl
        known.append(Observation(params=params, output=output, cost=params["tokens"]))
    surface = ResponseSurface.of(space, known)
    Z = space.encode_all([dict.fromkeys(names, 1.0) | {"tokens": 1000.0}])
    means, _, weights = surface.predict(Z)
    low, middle, high = surface.quantiles(Z, (0.16, 0.5, 0.84))[0]
    above = (middle - float(weights @ means[:, 0])) / ((high - low) / 2)
    assert above > 0.4 if n_rates == 16 else abs(above) < 0.1


def test_outputs_may_be_negative() -> None:
    known = [run.model_copy(update={"output": run.output - 5}) for run in runs(0)]
    moved, plain = ResponseSurface.of(SPACE, known), ResponseSurface.of(SPACE, runs(0))
    z = SPACE.encode_all([{"size": 10.0, "steps": 10.0, "rate": 0.3}])
    assert moved.quantiles(z, (0.5,)) == pytest.approx(plain.quantiles(z, (0.5,)) - 5, abs=0.01)


def test_the_gradient_is_that_of_the_evidence() -> None:
    surface = ResponseSurface.of(SPACE, runs(3, n=40))
    d, rng = int(surface.varies.sum()), np.random.default_rng(0)
    law, chosen = 1 - np.linspace(0.0, 1.0, 40), np.arange(40)
    v = np.concatenate([rng.normal(-1.0, 0.5, d), [-1.0, -1.0, 0.3, -2.0], rng.normal(0.1, 0.1, d)])
    slopes = approx_fprime(v, lambda v: surface.misfit(v, law, chosen)[0], 1e-6)
    assert surface.misfit(v, law, chosen)[1] == pytest.approx(slopes, rel=1e-4, abs=1e-4)


def test_a_surface_like_another_has_its_noise_whatever_its_own_losses_span() -> None:
    known = sorted(runs(0), key=lambda run: run.cost)
    full = ResponseSurface.of(SPACE, known)
    cheap = ResponseSurface.of(SPACE, known[:30], like=full)
    assert cheap.unit != pytest.approx(full.unit, rel=0.1)
    assert cheap.noise == pytest.approx(full.noise)


def test_a_fit_needs_no_torch() -> None:
    """It takes longer to import than all the rest of a plan, and brings threads of its own."""
    code = (
        "import sys, numpy as np\n"
        "from carbs import LogSpace, Param, SearchSpace\n"
        "from carbs.analysis.front.response_surface import ResponseSurface\n"
        "space = SearchSpace([Param('x', LogSpace(), 1.0), Param('y', LogSpace(), 1.0)])\n"
        "Z = np.random.default_rng(0).normal(size=(20, 2))\n"
        "ResponseSurface(space, Z, 10 ** Z[:, 0], np.square(Z).sum(axis=1))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
