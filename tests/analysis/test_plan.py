"""Curves along the front and the plan beyond it, on a task whose optimum is known.

The loss is a power law in size and tokens with a bowl around a learning rate that falls with size;
the cost is their product. At a cost C the optimum is known in closed form.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any, Literal

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml

from carbs import (
    ChoiceSpace,
    Failure,
    LinearSpace,
    LogSpace,
    MixtureSpace,
    Observation,
    Param,
    SearchSpace,
)
from carbs.analysis import datasets
from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.hyperparameters import Curve, hyperparameter_curves
from carbs.analysis.front.model import FrontModel, as_front, fit_front
from carbs.analysis.front.success import SuccessLaw
from carbs.analysis.front.trials import trials_frame
from carbs.analysis.laws.power import ExtrapolationWarning
from carbs.analysis.planning import choice
from carbs.analysis.planning.limits import Limits
from carbs.analysis.planning.plan import check, fit_front_law, plan
from carbs.analysis.planning.reach import Reach
from carbs.study import distributions, flatten

SPACE = SearchSpace(
    [
        Param("size", LogSpace(scale=0.5), 1.0),
        Param("tokens", LogSpace(scale=0.5), 1.0),
        Param("rate", LogSpace(scale=0.5), 1.0),
        Param("mix", MixtureSpace(["a", "b"]), {"a": 0.5, "b": 0.5}),
    ]
)
RATE_EXPONENT = -0.5  # in size, and so half of it in cost


def loss(size: float, tokens: float, rate: float, a: float) -> float:
    bowl = 0.15 * math.log10(rate / size**RATE_EXPONENT) ** 2 + 0.5 * (a - 0.7) ** 2
    return 1.0 + size**-0.3 + tokens**-0.3 + bowl


@cache
def sweep(seed: int = 0, direction: str = "minimize") -> FrontModel:
    """150 runs around the front, as a search leaves them: most cheap, none dearer than 100."""
    rng = np.random.default_rng(seed)
    sign = 1.0 if direction == "minimize" else -1.0
    observations = []
    for _ in range(150):
        cost = 10 ** rng.uniform(-0.5, 2.0)
        size = math.sqrt(cost) * 10 ** (0.25 * rng.standard_normal())
        rate = size**RATE_EXPONENT * 10 ** (0.4 * rng.standard_normal())
        a = float(np.clip(0.7 + 0.2 * rng.standard_normal(), 0.02, 0.98))
        tokens = cost / size
        output = loss(size, tokens, rate, a) + 0.01 * rng.standard_normal()
        observations.append(
            Observation(
                params={"size": size, "tokens": tokens, "rate": rate, "mix": {"a": a, "b": 1 - a}},
                output=sign * output,
                cost=cost * math.exp(0.05 * rng.standard_normal()),
            )
        )
    return fit_front(SPACE, observations, direction=direction)  # type: ignore[arg-type]


def test_exponents_lie_inside_their_intervals() -> None:
    curves = {curve.name: curve for curve in hyperparameter_curves(sweep())}
    for name, exponent in {"size": 0.5, "tokens": 0.5, "rate": RATE_EXPONENT / 2}.items():
        found = curves[name].exponent
        assert found is not None
        median, low, high = found
        # Three intervals of 90% at once: a near miss is none.
        slack = 0.1 * (high - low)
        assert low - slack <= exponent <= high + slack
        assert low < median < high
        assert high - low < 0.6


def test_no_band_is_narrower_than_what_the_draws_do_not_know() -> None:
    curves = {curve.name: curve for curve in hyperparameter_curves(sweep())}
    rate = curves["rate"]
    for side in (rate.high / rate.median, rate.median / rate.low):
        assert np.all(np.log10(side) > 0.14)  # 0.3 basic units, of half a decade each
    share = curves["mix.a"]
    assert np.all((share.low < share.median) & (share.median < share.high) & (share.high <= 1))


def test_a_mixture_has_a_curve_for_each_component_and_finds_the_best_share() -> None:
    curves = {curve.name: curve for curve in hyperparameter_curves(sweep())}
    share = curves["mix.a"]
    assert share.exponent is None
    assert np.all(share.low <= share.median) and np.all(share.median <= share.high)
    assert np.median(share.median) == pytest.approx(0.7, abs=0.12)
    np.testing.assert_allclose(share.median + curves["mix.b"].median, 1.0, atol=0.02)


def test_the_best_configuration_costs_what_was_asked_and_is_nearly_optimal() -> None:
    params = SPACE.decode(sweep().best_at(math.log10(30.0)))
    size, tokens, rate = (float(params[name]) for name in ("size", "tokens", "rate"))  # type: ignore[arg-type]
    assert size * tokens == pytest.approx(30.0, rel=0.6)
    best = loss(math.sqrt(30.0), math.sqrt(30.0), math.sqrt(30.0) ** RATE_EXPONENT, 0.7)
    assert loss(size, tokens, rate, params["mix"]["a"]) < best * 1.03  # type: ignore[index]


def test_between_two_good_places_the_plan_takes_one() -> None:
    """Searched by a sweep that has seen both: the median of what is likely lies between them."""
    space = SearchSpace(SPACE.params[:3])
    rng = np.random.default_rng(3)
    observations = []
    for i in range(80):
        cost = 10 ** rng.uniform(-0.5, 2.0)
        size = math.sqrt(cost) * 10 ** (0.2 * rng.standard_normal())
        place = (1 if i % 2 else -1) + 0.3 * rng.standard_normal()
        bowl = 0.2 * (place**2 - 1) ** 2
        output = 1.0 + size**-0.3 + (cost / size) ** -0.3 + bowl + 0.005 * rng.standard_normal()
        params = {"size": size, "tokens": cost / size, "rate": 10**place}
        observations.append(Observation(params=params, output=output, cost=cost))
    planned = plan(fit_front(space, observations), 200.0)
    assert 0.5 < abs(math.log10(planned.params["rate"])) < 1.5  # type: ignore[arg-type]


def test_the_plan_beyond_the_sweep_holds_what_comes_out() -> None:
    inside = []
    for seed in range(4):
        planned = plan(sweep(seed), 800.0)
        assert planned.cost == pytest.approx(800.0, rel=0.1)
        assert planned.extrapolation == pytest.approx(8.0, rel=0.4)
        params = planned.params
        size, tokens, rate = (float(params[name]) for name in ("size", "tokens", "rate"))  # type: ignore[arg-type]
        truth = loss(size, tokens, rate, params["mix"]["a"])  # type: ignore[index]
        best = loss(math.sqrt(800), math.sqrt(800), math.sqrt(800) ** RATE_EXPONENT, 0.7)
        assert truth < best * 1.08
        low, high = planned.output_interval
        assert low < planned.output < high
        assert high - low < 0.5
        inside.append(low <= truth <= high)
        assert planned.cost_interval[0] <= size * tokens <= planned.cost_interval[1]
    assert sum(inside) >= 3


def test_maximizing_mirrors_minimizing() -> None:
    low, high = plan(sweep(), 800.0).output_interval
    mirrored = plan(sweep(direction="maximize"), 800.0)
    assert mirrored.output_interval == pytest.approx((-high, -low))
    with pytest.raises(ValueError, match="maximized"):
        fit_front_law(sweep(direction="maximize"))


def test_the_law_of_the_front_falls_to_the_irreducible_loss() -> None:
    law = fit_front_law(sweep())
    assert 0.5 < law.E < 1.5
    assert law.predict(30.0) == pytest.approx(1 + 2 * 30.0**-0.15, rel=0.05)


def test_far_plans_and_bounds_are_warned_of() -> None:
    assert any("times the sweep's dearest" in warning for warning in plan(sweep(), 5e3).warnings)
    space = SearchSpace(
        [Param("size", LogSpace(max=10.0), 1.0), Param("kind", ChoiceSpace(["x", "y"]), "x")]
    )
    observations = [
        Observation(
            params={"size": size, "kind": kind},
            output=1 + size**-0.3 + (kind == "y") * 0.2,
            cost=size,
        )
        for size in np.geomspace(0.1, 10.0, 12).tolist()
        for kind in ("x", "y")
    ]
    planned = plan(fit_front(space, observations), 80.0)
    assert planned.params["kind"] == "x"
    assert any("size = 10" in warning for warning in planned.warnings)


@cache
def conditional_sweep() -> FrontModel:
    """SGD is best from a cost of ten on, with a momentum of 0.8 that its centre is far from."""
    space = SearchSpace(
        [
            Param("size", LogSpace(scale=0.5), 1.0),
            Param("optimizer", ChoiceSpace(["adam", "sgd"]), "adam"),
            Param("momentum", LinearSpace(min=0, max=1, scale=0.2), 0.2, {"optimizer": "sgd"}),
            Param("warmup", LogSpace(min=1, max=9), 1.0, {"optimizer": "adam"}),
        ]
    )
    rng = np.random.default_rng(0)
    observations = []
    for i in range(80):
        size, momentum, warmup = 10 ** rng.uniform(-1, 2), rng.uniform(0.4, 1), 2.0
        own = {"momentum": momentum} if i % 2 else {"warmup": warmup}
        of_sgd = 1.3 * size**-0.5 + 2 * (momentum - 0.8) ** 2
        observations.append(
            Observation(
                params={"size": size, "optimizer": "sgd" if i % 2 else "adam", **own},
                output=1 + (of_sgd if i % 2 else size**-0.2) + 0.005 * rng.standard_normal(),
                cost=size,
            )
        )
    return fit_front(space, observations)


def test_a_conditional_parameter_has_its_optimum_where_it_exists() -> None:
    front = conditional_sweep()
    curves = {curve.name: curve for curve in hyperparameter_curves(front)}
    has_momentum, has_warmup = (
        front.active(front.space.params[i]).mean(axis=0) >= 0.1 for i in (2, 3)
    )
    assert has_momentum[-1] and has_warmup[0]
    assert not has_momentum.all() and not has_warmup.all()
    np.testing.assert_array_equal(np.isnan(curves["momentum"].median), ~has_momentum)
    assert curves["momentum"].median[-1] == pytest.approx(0.8, abs=0.1)
    assert np.isnan(curves["warmup"].high[-1])
    # No draw has it at every cost, so that there is no line.
    assert curves["warmup"].exponent is None
    planned = plan(front, 200.0)
    assert planned.params["optimizer"] == "sgd"
    assert planned.params["momentum"] == pytest.approx(0.8, abs=0.1)
    assert "warmup" not in planned.params
    # Its centre lies on its bound, but it is not there.
    assert not any("warmup" in warning for warning in planned.warnings)


def test_the_best_configuration_is_the_median_of_those_draws_that_have_the_parameter() -> None:
    front = conditional_sweep()
    draws: list[dict[str, Any]] = [
        {"size": 1.0, "optimizer": "sgd", "momentum": momentum}
        for momentum in (0.7, 0.75, 0.8, 0.85, 0.9)
    ]
    draws += [{"size": 1.0, "optimizer": "adam", "warmup": 4.0}] * 4
    intercepts = front.space.encode_all(draws)
    lines = replace(front, intercepts=intercepts, slopes=np.zeros_like(intercepts))
    # The size, which is the cost, is what was asked for.
    assert front.space.decode(lines.best_at(1.0)) == {
        "size": pytest.approx(10.0),
        "optimizer": "sgd",
        "momentum": pytest.approx(0.8),
    }


def test_plan_and_curves_obey_constraints() -> None:
    def space(*constraints: Any) -> SearchSpace:
        return SearchSpace(
            [
                Param("width", LogSpace(scale=0.5, is_integer=True), 6),
                Param("heads", LogSpace(scale=0.5, is_integer=True), 2),
            ],
            constraints,
        )

    rng = np.random.default_rng(0)
    observations = []
    for _ in range(60):
        heads = int(10 ** rng.uniform(0, 1.7))
        width = heads * int(10 ** rng.uniform(0, 1.3))
        output = 1 + width**-0.5 + 0.2 * math.log10(heads * 5 / width) ** 2
        observations.append(
            Observation(params={"width": width, "heads": heads}, output=output, cost=float(width))
        )
    divisible = space("width % heads == 0")
    free = plan(fit_front(space(), observations), 1003.0)
    assert not divisible.allows(free.params)
    front = fit_front(divisible, observations)
    planned = plan(front, 1003.0)
    assert divisible.allows(planned.params)
    assert planned.params["width"] == pytest.approx(1003, rel=0.1)
    assert planned.params["heads"] == pytest.approx(free.params["heads"], rel=0.4)
    for z in np.unique(front.optima.reshape(-1, 2), axis=0):
        assert divisible.allows(divisible.decode(z))
    # Where nothing near is allowed, the centre is.
    only_cheap = fit_front(space("width <= 6"), observations)
    assert only_cheap.space.allows(plan(only_cheap, 1003.0).params)


def test_too_few_runs_are_an_error_that_says_so() -> None:
    observations = sweep().observations[:3]
    with pytest.raises(ValueError, match="at least four finished runs"):
        fit_front(SPACE, observations)


@cache
def study() -> optuna.Study:
    """The sweep as a study of a sampler, with FLOPs, versions and data among the metrics."""
    made = optuna.create_study(directions=["minimize", "minimize"])
    known = distributions(SPACE)
    for i, run in enumerate(sweep().observations):
        flops = 1e12 * run.cost
        environment = {"torch": "2.0" if i % 2 else "2.1"}
        data = {
            "a": {"version": "0f3c" if i < 90 else "91ab", "unique_tokens": 1},
            "b": {"version": "77de", "unique_tokens": 10**9},
        }
        made.add_trial(
            optuna.trial.create_trial(
                params=flatten(run.params),
                distributions={name: known[name] for name in flatten(run.params)},
                values=[run.output, run.cost],
                user_attrs={
                    "metrics": {
                        "flops": flops,
                        "environment": environment,
                        "data": data,
                        "evaluations": {"arc": {"version": f"{i // 7}"}, "piqa": {"version": "1"}},
                    }
                },
            )
        )
    return made


def test_curves_come_from_a_study_a_frame_or_a_front_alike() -> None:
    of_study = hyperparameter_curves(study(), space=SPACE)
    of_frame = hyperparameter_curves(trials_frame(study(), SPACE), space=SPACE)
    of_front = hyperparameter_curves(as_front(study(), space=SPACE))
    for one, other, third in zip(of_study, of_frame, of_front, strict=True):
        assert one.slope == pytest.approx(third.slope, rel=1e-3)
        assert other.slope == pytest.approx(third.slope, rel=1e-3)
    guessed = hyperparameter_curves(trials_frame(study(), SPACE))
    assert {curve.name: curve.law for curve in guessed} == {
        "size": "log-linear",
        "tokens": "log-linear",
        "rate": "log-linear",
        "mix.a": "log-ratio",
        "mix.b": "log-ratio",
    }
    with pytest.raises(ValueError, match=r"lacks the columns \['rate'\]"):
        hyperparameter_curves(trials_frame(study(), SPACE).drop(columns="rate"), space=SPACE)


def test_a_law_goes_on_beyond_the_searched_costs() -> None:
    curve = next(curve for curve in hyperparameter_curves(sweep()) if curve.name == "size")
    low, high = curve.interval(3000.0)
    assert low < math.sqrt(3000.0) < high and low < curve.predict(3000.0) < high
    narrow = curve.interval(30.0)
    assert math.log(high / low) > math.log(narrow[1] / narrow[0])
    assert curve.summary()["estimate"][0] == pytest.approx(0.5, abs=0.1)


def test_curves_say_what_does_not_matter_and_what_sits_on_a_bound() -> None:
    space = SearchSpace(
        [
            Param("size", LogSpace(scale=0.5), 1.0),
            Param("rate", LogSpace(min=0.1, max=10, scale=0.5), 1.0),
            Param("noise", LogSpace(min=0.1, max=10, scale=0.5), 1.0),
        ]
    )
    rng = np.random.default_rng(0)
    known = []
    for _ in range(80):
        size, rate, noise = 10 ** rng.uniform([-1, -1, -1], [2, 1, 1])
        output = 1 + size**-0.3 + 0.1 * (math.log10(rate) - 2) ** 2 + 0.005 * rng.standard_normal()
        params = {"size": size, "rate": rate, "noise": noise}
        known.append(Observation(params=params, output=output, cost=size))
    curves = {curve.name: curve for curve in hyperparameter_curves(fit_front(space, known))}
    assert curves["rate"].matters and curves["rate"].at_bound == "high"
    assert not curves["noise"].matters
    assert not any(curve.bends for curve in curves.values())


def test_budgets_become_costs_by_the_flops_that_were_recorded() -> None:
    by_cost = plan(sweep(), 800.0)
    by_flops = plan(study(), flops=800e12, space=SPACE)
    assert by_flops.target_cost == pytest.approx(800.0, rel=0.05)
    assert by_flops.output == pytest.approx(by_cost.output, abs=0.02)
    assert by_flops.budget is not None and by_flops.budget.flops == 800e12
    assert any("differ in torch: 2.0, 2.1" in warning for warning in by_flops.warnings)
    asked = [warning for warning in by_flops.warnings if "were asked" in warning]
    assert len(asked) == 1 and asked[0].endswith("versions of 'arc'")
    hours = plan(study(), gpu_hours=by_flops.budget.gpu_hours, space=SPACE)
    assert hours.target_cost == pytest.approx(by_flops.target_cost, rel=1e-6)
    assumed = plan(sweep(), flops=800.0)
    assert assumed.target_cost == 800.0
    assert any("taken to be in FLOPs" in warning for warning in assumed.warnings)
    with pytest.raises(ValueError, match="not both"):
        plan(sweep(), 800.0, flops=1e15)
    with pytest.raises(ValueError, match="give one of"):
        plan(sweep())


def test_epochs_over_few_unique_tokens_are_warned_of() -> None:
    planned = plan(sweep(), 800.0, unique_tokens=2.0)
    assert planned.tokens == planned.params["tokens"]
    assert planned.epochs == pytest.approx(planned.tokens / 2)
    assert any("epochs" in warning for warning in planned.warnings)


def test_a_plan_says_what_its_runs_recorded_of_their_data() -> None:
    planned = plan(study(), 800.0, space=SPACE)
    assert planned.tokens is not None
    epochs = planned.tokens * planned.params["mix"]["a"]  # type: ignore[index]
    assert epochs > 4
    told = [warning for warning in planned.warnings if "epochs" in warning]
    assert len(told) == 1
    assert told[0].startswith(f"{epochs:.1f} epochs over component 'a', which has 1 tokens")
    differ = "the sweep's runs differ in the data of a: versions 0f3c, 91ab"
    assert differ in planned.warnings
    assert not any("data of b" in warning for warning in planned.warnings)


def test_the_ladder_is_cheap_and_expects_what_comes_out() -> None:
    planned = plan(sweep(), 5000.0)
    assert planned.ladder
    assert sum(rung.share for rung in planned.ladder) <= 0.15
    for rung in planned.ladder:
        assert sweep().dearest < rung.cost < planned.target_cost and 0 < rung.tells < 1
        size, tokens, rate = (float(rung.params[name]) for name in ("size", "tokens", "rate"))  # type: ignore[arg-type]
        truth = loss(size, tokens, rate, rung.params["mix"]["a"])  # type: ignore[index]
        assert rung.output_interval[0] < truth < rung.output_interval[1]


def test_a_check_run_that_beats_its_interval_is_better_where_high_is_good_too() -> None:
    planned = plan(sweep(direction="maximize"), 2000.0)
    rung = planned.ladder[-1]
    run = {"params": rung.params, "output": rung.output + 0.5, "cost": rung.cost}
    assert check(planned, run).verdict == "better"


def test_a_check_run_is_judged_and_moves_the_large_prediction() -> None:
    planned = plan(sweep(), 2000.0)
    rung = planned.ladder[-1]
    run = {"params": rung.params, "output": rung.output, "cost": rung.cost}
    on_curve = check(planned, run)
    assert on_curve.verdict == "on the curve"
    width = on_curve.after.output_interval[1] - on_curve.after.output_interval[0]
    assert width < on_curve.before.output_interval[1] - on_curve.before.output_interval[0]
    worse = check(planned, {**run, "output": rung.output + 0.5})
    assert worse.verdict == "worse" and worse.after.output > planned.output
    with pytest.raises(ValueError, match="lacks 'cost'"):
        check(planned, {"params": rung.params, "output": 1.0})


def test_a_job_file_is_a_sweep_of_one_trial() -> None:
    planned = plan(sweep(), 800.0, sweep={"name": "s", "function": "m:train", "settings": {"a": 1}})
    job = yaml.safe_load(planned.job_file())
    assert job["max_trials"] == 1 and job["function"] == "m:train" and job["settings"] == {"a": 1}
    centers = {name: entry["search_center"] for name, entry in job["parameters"].items()}
    assert centers == planned.params


def test_a_value_that_is_given_is_kept_and_the_cost_is_met_with_the_rest() -> None:
    free = plan(sweep(), 2000.0)
    small = plan(sweep(), 2000.0, fixed={"size": 8.0})
    assert small.params["size"] == pytest.approx(8.0)
    assert small.cost == pytest.approx(free.cost, rel=0.05) == pytest.approx(2000.0, rel=0.1)
    assert float(small.params["tokens"]) > 2 * float(free.params["tokens"])  # type: ignore[arg-type]
    assert small.output > free.output
    assert all(rung.params["size"] == pytest.approx(8.0) for rung in small.ladder)
    run = {"params": small.ladder[0].params, "output": small.ladder[0].output, "cost": 100.0}
    assert check(small, run).after.params["size"] == pytest.approx(8.0)


def test_other_bounds_hold_the_plan_or_let_it_further_than_the_sweep_went() -> None:
    most = 20.0
    bounded = SearchSpace(
        [Param("size", LogSpace(scale=0.5, max=most), 1.0), *SPACE.params[1:]], ["rate < 100"]
    )
    runs = [run for run in sweep().observations if float(run.params["size"]) <= most]  # type: ignore[arg-type]
    front = fit_front(bounded, runs)
    assert plan(front, 3000.0).params["size"] <= most  # type: ignore[operator]
    wide = plan(front, 3000.0, bounds={"size": (None, 1e3)})
    assert most < wide.params["size"] <= 1e3  # type: ignore[operator]
    tight = plan(front, 3000.0, bounds={"size": (2.0, 10.0), "tokens": (None, 100.0)})
    assert tight.params["size"] == pytest.approx(10.0)
    assert tight.params["tokens"] == pytest.approx(100.0)
    assert any("expected to cost" in w and "widen the bounds" in w for w in tight.warnings)


@pytest.mark.parametrize(
    ("bounds", "fixed", "problem"),
    [
        ({"depth": (1, 2)}, {}, "no parameter 'depth': there are size, tokens, rate, mix"),
        ({"mix": (0, 1)}, {}, "'mix' has no bounds: it is a mixture"),
        ({"size": (3, 2)}, {}, "bounds of 'size': 3 is above 2"),
        ({"size": 2e8}, {}, r"bounds of 'size' are 200000000.0, expected \(low, high\)"),
        ({"size": (1, 2)}, {"size": 1.5}, "a value or bounds of size, not both"),
        ({}, {"size": -1.0}, "size = -1.0: -1 lies outside"),
    ],
)
def test_limits_that_cannot_be_are_refused(bounds: Any, fixed: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        plan(sweep(), 1000.0, bounds=bounds, fixed=fixed)


def test_a_plan_without_a_budget_is_refused_with_the_ways_to_give_one() -> None:
    with pytest.raises(ValueError, match="give one of flops, gpu_hours and money, or a cost"):
        plan(sweep())


def test_a_count_at_the_bound_that_was_asked_for_is_told() -> None:
    """However near the search for the plan has come to it."""
    size = Param("n_params", LogSpace(scale=0.5, is_integer=True), 10**6)
    space = SearchSpace([size, *SPACE.params[1:]])
    runs = []
    for run in sweep().observations:
        params = dict(run.params)
        params["n_params"] = round(1e6 * params.pop("size"))  # type: ignore[operator]  # a number
        runs.append(run.model_copy(update={"params": params}))
    planned = plan(fit_front(space, runs), 3000.0, bounds={"n_params": (None, 2e7)})
    assert planned.params["n_params"] == pytest.approx(2e7, rel=1e-4)
    assert any("n_params = 2e+07 lies on its bound" in warning for warning in planned.warnings)


def test_a_loss_that_was_never_negative_is_not_expected_to_be() -> None:
    """A few noisy runs, planned very far: what is believed of the loss reaches below zero."""
    rng = np.random.default_rng(1)
    observations = []
    for _ in range(20):
        cost = 10 ** rng.uniform(0, 1.0)
        params = {"size": cost**0.5, "tokens": cost**0.5, "rate": 10 ** (0.3 * rng.normal())}
        output = 0.05 + 1.5 * cost**-0.8 * math.exp(0.3 * rng.normal())
        observations.append(Observation(params=params, output=output, cost=cost))
    far = plan(fit_front(SearchSpace(SPACE.params[:3]), observations), 1e5)
    assert 0 < far.output_interval[0] < far.output < far.output_interval[1]
    assert all(rung.output_interval[0] > 0 for rung in far.ladder)


def test_what_failed_for_its_size_is_planned_smaller_and_trained_longer() -> None:
    """Sizes above 10 fail: at thirty times the cost, all the growth is left to the tokens."""
    free = plan(sweep(), 3000.0)
    assert free.params["size"] > 20  # type: ignore[operator]
    failures = []
    rng = np.random.default_rng(0)
    kept = [run for run in sweep().observations if float(run.params["size"]) <= 10]  # type: ignore[arg-type]
    for _ in range(30):
        size = 10 ** rng.uniform(1.0, 1.6)
        params = {"size": size, "tokens": 100 / size, "rate": size**RATE_EXPONENT}
        params["mix"] = {"a": 0.7, "b": 0.3}  # type: ignore[assignment]
        failures.append(Failure(params=params, reason="out of memory"))
    front = fit_front(SPACE, kept, failures)
    planned = plan(front, 3000.0)
    assert planned.cost == pytest.approx(3000.0, rel=0.3)
    assert planned.params["size"] <= 12  # type: ignore[operator]
    law = SuccessLaw.fit(SPACE, front.observations, front.failures)
    odds = law.probability(SPACE.encode_all([planned.params, free.params]))
    assert odds[0] > 1.5 * odds[1]


@pytest.mark.parametrize("rates", [(), (30.0, 10.0)], ids=["the cap", "the cap and divergence"])
def test_failures_elsewhere_leave_a_plan_far_out_where_it_was(rates: tuple[float, ...]) -> None:
    """A run was ended at the cap, two diverged far above the best learning rate."""
    free = plan(sweep(), 3000.0)
    ended = {"size": 10.0, "tokens": 12.0, "rate": 0.3, "mix": {"a": 0.7, "b": 0.3}}
    failures = [Failure(params=ended, reason="too dear", cost=sweep().dearest)]
    failures += [Failure(params={**ended, "rate": rate}, reason="diverged") for rate in rates]
    planned = plan(fit_front(SPACE, sweep().observations, failures), 3000.0)
    for name in ("size", "tokens", "rate"):
        assert planned.params[name] == pytest.approx(free.params[name], rel=0.25)


def diverging(*constraints: Any) -> FrontModel:
    """Every run diverges at a rate above 0.27, whatever its size."""
    rng = np.random.default_rng(0)
    kept = [run for run in sweep().observations if float(run.params["rate"]) < 0.27]  # type: ignore[arg-type]
    failures = [
        Failure(params={**run.params, "rate": 10 ** rng.uniform(-0.55, 0.2)}, reason="diverged")
        for run in kept[:40]
    ]
    return fit_front(SearchSpace(SPACE.params, constraints), kept, failures)


def test_what_is_moved_to_where_it_is_allowed_is_not_moved_to_where_it_fails() -> None:
    free = plan(diverging(), 300.0)
    rate = float(free.params["rate"])  # type: ignore[arg-type]
    assert 0.12 < rate < 0.27 and not any("fail" in warning for warning in free.warnings)
    planned = plan(diverging("rate >= 0.3 or rate <= 0.05"), 300.0)
    assert planned.params["rate"] <= 0.05  # type: ignore[operator]  # 0.3 is nearer
    assert not any("fail" in warning for warning in planned.warnings)


def test_a_plan_that_may_fail_with_what_was_asked_for_says_so() -> None:
    planned = plan(diverging(), 300.0, fixed={"rate": 0.35})
    assert any("expected to fail" in said and "with rate as" in said for said in planned.warnings)


def test_a_value_beside_its_law_is_told_and_one_within_is_not() -> None:
    found = {one.name: one for one in plan(sweep(), 2000.0).decisions}
    assert found["rate"].interval is not None
    low, high = found["rate"].interval
    beside = plan(sweep(), 2000.0, fixed={"rate": 5 * high}).warnings
    assert any(said.startswith(f"rate = {5 * high:g}, as asked for; its law") for said in beside)
    within = plan(sweep(), 2000.0, fixed={"rate": math.sqrt(low * high)}).warnings
    assert not any("rate" in said for said in within)


@pytest.mark.parametrize(("multiple", "ends"), [(0, (0.4, 60.0)), (1, (1, 60)), (16, (16, 64))])
def test_the_interval_of_a_whole_number_has_whole_ends(
    multiple: int, ends: tuple[float, float]
) -> None:
    costs = np.geomspace(1, 100, 5)
    lines = np.array([[math.log10(0.4), 0.0], [math.log10(60.0), 0.0]])
    curve = Curve("width", costs, costs, costs, costs, None, lines=lines, multiple=multiple)
    assert curve.possible(10.0, level=1.0) == pytest.approx(ends)


def test_a_plan_of_whole_numbers_says_what_they_can_be() -> None:
    whole = LogSpace(min=1, is_integer=True)
    space = SearchSpace([Param("size", whole, 1), *SPACE.params[1:]])
    runs = [
        run.model_copy(update={"params": {**run.params, "size": max(1, round(run.params["size"]))}})  # type: ignore[arg-type]
        for run in sweep().observations
    ]
    size = plan(fit_front(space, runs), 2000.0).decisions[0]
    assert size.name == "size" and size.interval is not None
    assert all(end >= 1 and end == round(end) for end in size.interval)


def test_a_plan_too_far_beyond_the_sweep_says_to_search_nearer() -> None:
    dearest = sweep().dearest
    near, far = plan(sweep(), 100 * dearest), plan(sweep(), 1e4 * dearest)
    assert any("100 times" in said and "check on the way" in said for said in near.warnings)
    assert any("1e+04 times" in said and "search nearer" in said for said in far.warnings)


def test_a_plan_says_what_a_factor_of_two_beside_each_number_would_cost() -> None:
    planned = plan(sweep(), 2000.0)
    found = {one.name: one for one in planned.decisions}
    assert list(found) == ["size", "tokens", "rate"]
    assert all(found[name].value == planned.params[name] for name in found)
    rate, size = found["rate"], found["size"]
    assert rate.step == "x2" and rate.interval is not None
    low, high = rate.interval
    assert low < size.value**RATE_EXPONENT < high
    # The bowl is 0.15 wide a decade; the plan need not lie at its bottom.
    assert rate.lower is not None and rate.higher is not None
    assert (rate.lower + rate.higher) / 2 == pytest.approx(0.15 * math.log10(2) ** 2, rel=0.7)
    # Half the size is trained twice as long: near the optimum that hardly matters.
    assert size.lower is not None and abs(size.lower) < 0.05
    held = plan(sweep(), 2000.0, fixed={"rate": 0.1})
    rate = next(one for one in held.decisions if one.name == "rate")
    assert rate.value == 0.1 and rate.lower is None and rate.higher is None


def test_a_table_says_what_other_budgets_would_buy_under_the_same_bounds() -> None:
    planned = plan(sweep(), 1000.0, bounds={"size": (None, 12.0)})
    table = planned.table([100.0, 1000.0, 4000.0])
    assert table["cost"].tolist() == [100.0, 1000.0, 4000.0]
    assert table["output"].is_monotonic_decreasing and table["tokens"].is_monotonic_increasing
    assert (table["low"] < table["output"]).all() and (table["output"] < table["high"]).all()
    assert table["size"].max() <= 12.0
    assert table["output"][1] == pytest.approx(planned.output)
    assert table["mix.a"][1] == planned.params["mix"]["a"]  # type: ignore[index]
    with pytest.raises(ValueError, match=r"cost is -1.0, expected a positive"):
        planned.table([-1.0])
    with pytest.warns(ExtrapolationWarning, match=r"at costs of 2e\+06, 1e\+06 are no") as told:
        planned.table([2e6, 1000.0, 1e6])
    assert told[0].filename == __file__


def test_a_table_whose_outputs_get_worse_with_cost_says_that_they_are_no_guide() -> None:
    """Larger costs loss here, and the bound leaves nothing else to spend on."""
    rng, observations = np.random.default_rng(0), []
    for _ in range(40):
        size, rate = 10 ** rng.uniform(0, 2), 10 ** rng.uniform(-1, 1)
        output = 2 + 0.3 * math.log10(size) + 0.2 * math.log10(rate) ** 2
        params = {"size": size, "rate": rate}
        observations.append(Observation(params=params, output=output, cost=size))
    space = SearchSpace([Param("size", LogSpace(), 1.0), Param("rate", LogSpace(), 1.0)])
    planned = plan(fit_front(space, observations), 90.0)
    with pytest.warns(ExtrapolationWarning, match=r"at costs of 30, 90 are no guide.*cost 9"):
        planned.table([3.0, 30.0, 90.0])


@pytest.fixture(scope="module", params=["formula", "flops"])
def known_cost_front(request: pytest.FixtureRequest) -> FrontModel:
    """Costs with a third of noise, and what they are proportional to."""
    rng = np.random.default_rng(3)
    runs = [
        run.model_copy(update={"cost": run.cost * math.exp(0.3 * rng.standard_normal())})
        for run in sweep().observations
    ]
    if request.param == "formula":
        return fit_front(SearchSpace(SPACE.params, cost="6 * size * tokens"), runs)
    rows = [
        flatten(run.params)
        | {"output": run.output, "cost": run.cost}
        | {"flops": 6e12 * run.params["size"] * run.params["tokens"]}  # type: ignore[operator]
        for run in runs
    ]
    return as_front(pd.DataFrame(rows), space=SPACE)


def test_a_cost_that_is_known_is_met(known_cost_front: FrontModel) -> None:
    for bounds in ({}, {"size": (None, 10.0)}):
        planned = plan(known_cost_front, 3000.0, bounds=bounds)
        true = planned.params["size"] * planned.params["tokens"]  # type: ignore[operator]
        assert true == pytest.approx(3000, rel=0.15)  # the noise's mean over 150 runs is not known
        assert planned.cost_interval[0] < 3000 < planned.cost_interval[1] < 4000 * 1.5


def test_a_plan_says_what_other_ways_of_planning_would_run() -> None:
    planned = plan(sweep(), 3000.0)
    assert len({other.way for other in planned.alternatives}) == 3
    for other in planned.alternatives:
        assert other.params["size"] * other.params["tokens"] == pytest.approx(3000, rel=0.2)  # type: ignore[operator]
        assert other.output_interval[0] < other.output < other.output_interval[1]
    best = min(other.output for other in planned.alternatives)
    assert planned.output < best + 0.01


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_plan_is_a_picture(direction: str) -> None:
    planned = plan(sweep(direction=direction), 3000.0)
    (ax,) = planned.figure().axes
    assert ax.get_legend() is not None
    shown = {text.get_text() for text in ax.get_legend().get_texts()}
    assert {"run of the sweep", "Pareto front", "the plan, 90% intervals", "check run"} <= shown
    low, high = ax.get_ylim()
    assert low < planned.output_interval[0] < planned.output_interval[1] < high
    assert ax.get_xlim()[1] > planned.cost
    assert ax.get_xlabel() == "cost of one run"
    assert planned.figure(cost_unit="s").axes[0].get_xlabel() == "cost of one run (s)"


def test_a_plan_that_may_be_no_better_than_the_best_run_says_so() -> None:
    """Once where dearer runs gain much, once where cost hardly helped and noise is large."""
    assert not any("best run" in warning for warning in plan(sweep(), 3000.0).warnings)
    rng = np.random.default_rng(0)
    flat = [
        run.model_copy(update={"output": 3.0 - 0.01 * math.log(run.cost) + 0.1 * rng.normal()})
        for run in sweep().observations
    ]
    (found,) = (w for w in plan(fit_front(SPACE, flat), 3000.0).warnings if "best run" in w)
    assert f"{min(run.output for run in flat):.4g}" in found


@pytest.mark.parametrize(
    ("least", "said"), [(1, []), (2, ["depth = 2 lies on its bound: widen it"])]
)
def test_a_bound_is_named_where_it_can_be_widened(least: int, said: list[str]) -> None:
    """A depth as low as it may be, where lower would be better; there is none below one."""
    space = SearchSpace(
        [
            Param("tokens", LogSpace(scale=0.5), 1.0),
            Param("depth", LogSpace(min=least, is_integer=True, scale=0.5), least),
        ]
    )
    rng, observations = np.random.default_rng(0), []
    for _ in range(60):
        cost, depth = 10 ** rng.uniform(0, 2), least + int(rng.integers(3))
        output = 1 + cost**-0.3 + math.log10(depth)
        params = {"tokens": cost, "depth": depth}
        observations.append(Observation(params=params, output=output, cost=cost))
    planned = plan(fit_front(space, observations), 1000.0)
    assert planned.params["depth"] == least
    assert [warning for warning in planned.warnings if "bound" in warning] == said
    (depth,) = (c for c in hyperparameter_curves(planned.expectation.front) if c.name == "depth")  # type: ignore[union-attr]  # it has one
    assert depth.at_bound == ("low" if said else None)


@pytest.mark.parametrize("seed", range(3))
def test_one_good_way_of_planning_is_not_averaged_with_bad_ones(seed: int) -> None:
    """The least depth is best; runs that are carried along or scaled up are of any depth."""
    space = SearchSpace(
        [
            Param("tokens", LogSpace(scale=0.5), 1.0),
            Param("depth", LogSpace(min=1, is_integer=True, scale=0.5), 1),
        ]
    )
    rng, observations = np.random.default_rng(seed), []
    for _ in range(60):
        tokens, depth = 10 ** rng.uniform(0, 2), 1 + int(rng.integers(4))
        output = 1 + tokens**-0.3 + 0.2 * math.log10(depth) + 0.01 * rng.standard_normal()
        params = {"tokens": tokens, "depth": depth}
        observations.append(Observation(params=params, output=output, cost=tokens * depth))
    planned = plan(fit_front(space, observations), 3000.0)
    assert planned.params == {"tokens": pytest.approx(3000, rel=0.1), "depth": 1}


def test_what_is_best_on_its_bound_is_not_believed_to_leave_it() -> None:
    """Depths grow with cost, as is known beforehand; in this sweep one layer is nearly always best.

    By far the most draws have it at one layer at every cost, and say nothing of a slope.
    """
    whole = {"is_integer": True, "scale": 0.5}
    space = SearchSpace(
        [
            Param("width", LogSpace(min=16, max=512, rounding_factor=16, **whole), 32),
            Param("depth", LogSpace(min=1, max=16, **whole), 1),
            Param("learning_rate", LogSpace(scale=0.5), 0.02),
            Param("tokens", LogSpace(min=8192, **whole), 16384),
        ]
    )
    runs = datasets.load("small_lm_sweep").iloc[:-1]
    curves = {curve.name: curve for curve in hyperparameter_curves(runs, space=space)}
    depth, low, high = curves["depth"].exponent or (math.nan,) * 3
    assert -0.05 < low <= depth == 0 < high
    assert curves["tokens"].exponent is not None and curves["tokens"].exponent[0] > 0.4


def drifting(seed: int, role: Literal["none"] | None) -> FrontModel:
    """Runs of a search that made its models smaller as they cost more, with 2% of noise."""
    rng = np.random.default_rng(seed)
    sizes = {"n_params": 1e7, "tokens": 1e8}
    space = SearchSpace([Param(name, LogSpace(), x, role=role) for name, x in sizes.items()])
    observations = []
    for _ in range(40):
        c = rng.uniform(0, 1)
        off = -0.3 * c + 0.15 * rng.standard_normal()
        n, d = 10 ** (c / 2 + off), 10 ** (c / 2 - off)
        output = (1.7 + n**-0.3 + d**-0.3) * math.exp(0.02 * rng.standard_normal())
        params = {"n_params": 1e7 * n, "tokens": 1e8 * d}
        observations.append(Observation(params=params, output=output, cost=n * d))
    return fit_front(space, observations)


@pytest.mark.parametrize("seed", range(3))
def test_model_and_tokens_grow_alike_unless_the_runs_say_otherwise(seed: int) -> None:
    """The optimum at a thousand times the cost is 32 times of both."""
    off = []
    roles: tuple[Literal["none"] | None, ...] = (None, "none")  # guessed, and switched off
    for role in roles:
        planned = plan(drifting(seed, role), 1000.0)
        off.append(abs(math.log10(planned.params["n_params"] / 1e7 / math.sqrt(1000))))
    assert off[0] < 0.5
    assert off[1] > off[0] + 0.3
    believed = {one.name: one.beforehand for one in plan(drifting(seed, None), 100.0).decisions}
    assert believed == pytest.approx({"n_params": 0.5, "tokens": 0.5})


def rated(role: Literal["none"] | None) -> FrontModel:
    """Runs of up to a cost of 100 whose best learning rate falls as the model grows."""
    rng = np.random.default_rng(0)
    space = SearchSpace(
        [
            Param("N", LogSpace(scale=0.5), 1.0),
            Param("D", LogSpace(scale=0.5), 1.0),
            Param("lr", LogSpace(scale=0.5), 1.0, role=role),
        ]
    )
    runs = []
    for c in np.linspace(0.0, 2.0, 40):
        n = 10 ** (c / 2 + 0.1 * rng.standard_normal())
        d, rate = 10**c / n, n**-0.5 * 10 ** (0.1 * rng.standard_normal())
        loss = 1 + n**-0.3 + d**-0.3 + 0.2 * math.log10(rate * n**0.5) ** 2
        params = {"N": n, "D": d, "lr": rate}
        runs.append(Observation(params=params, output=loss, cost=n * d))
    return fit_front(space, runs)


@pytest.mark.parametrize("role", [None, "none"])
def test_what_the_models_cannot_tell_apart_goes_to_a_run_scaled_up(
    role: Literal["none"] | None,
) -> None:
    """With its learning rate, where that is known to fall as the model grows.

    Each is worse here by three tenths of what is at stake: the further beyond the runs, the less
    can be told.
    """
    front = rated(role)
    reach = Reach(front, Limits.of(front.space, {}, {}))
    found = choice.candidates(Expectation.of(front, splits=()), reach, 1e4)
    is_scaled = found.ways == choice.WAYS.index("a run scaled up")
    losses = found.losses.min() + 0.3 * found.stakes.max() * is_scaled
    found = found._replace(losses=losses, order=np.argsort(losses, kind="stable"))

    def preferred(cost: float) -> set[str]:
        return {choice.WAYS[way] for way in found.ways[choice._preferred(front, found, cost)]}

    assert preferred(1e4) == ({"a run scaled up"} if role is None else set(choice.WAYS))
    assert preferred(1e3) == set(choice.WAYS)
