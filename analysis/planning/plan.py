"""From a budget to a configuration, with the loss and the cost to expect; and the check run.

Which configuration it is says :mod:`carbs.analysis.planning.choice`; what to expect of it,
:mod:`carbs.analysis.front.expectation`.
"""

from __future__ import annotations

import copy
import html
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import yaml
from optuna.study import Study

from carbs.analysis.front.cost_model import CostModel
from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.hyperparameters import hyperparameter_curves
from carbs.analysis.front.model import FrontModel, as_front, fit_front
from carbs.analysis.front.trials import run_metrics
from carbs.analysis.laws.power import ComputeLaw, ExtrapolationWarning, UndeterminedLawWarning
from carbs.analysis.laws.power_fits import fit_compute_law
from carbs.analysis.laws.shown import Shown
from carbs.analysis.planning.budget import GPUS, Budget, Failures
from carbs.analysis.planning.caveats import (
    TOO_FAR,
    prediction_caveats,
    repetition_caveats,
    version_caveats,
)
from carbs.analysis.planning.choice import WAYS, Candidates, best_at_cost, candidates
from carbs.analysis.planning.decisions import Decision, decisions
from carbs.analysis.planning.limits import Bounds, Limits
from carbs.analysis.planning.reach import Reach
from carbs.display import in_a_line, with_interval
from carbs.optimizer import CARBS
from carbs.pareto import pareto_front
from carbs.records import Direction, Observation
from carbs.result import SearchResult
from carbs.roles import SIZE_EXPONENTS, TOKEN_EXPONENTS
from carbs.search_space import Role, SearchSpace
from carbs.spaces import FloatArray, Params
from carbs.study import flatten
from carbs.threads import on_one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# So far beyond the dearest run, a budget in FLOPs beside a cost of unknown unit is a mistake.
_FARTHEST = 1e5
# Check runs: shares of the large run's cost, of which some are proposed that cost together at most
# so much of it.
_RUNGS = (0.003, 0.01, 0.03, 0.1)
_LADDER_SHARE = 0.15
# Mixed-precision Adam: two bytes each for weights and gradients, twelve for the optimizer's state
# (Rajbhandari et al. 2020, "ZeRO", sec. 3.1).
_BYTES_PER_PARAMETER = 16
_TOKENS = ("tokens", "n_tokens", "D")
_PARAMETERS = ("n_params", "parameters", "N")


@dataclass(frozen=True)
class Rung:
    """A check run on the way.

    Attributes:
        cost: of it, in the sweep's unit; ``share`` of the large run's.
        params: its configuration.
        output, output_interval: what it is expected to give.
        tells: the share of the uncertainty about the large run's loss (its variance) that would be
            gone with its measurement.
    """

    cost: float
    share: float
    params: Params
    output: float
    output_interval: tuple[float, float]
    tells: float


@dataclass(frozen=True)
class Alternative:
    """What another way of planning would run for the same cost.

    Attributes:
        way: of planning.
        params: the configuration, the best that this way names.
        output, output_interval: what it is expected to give.
    """

    way: str
    params: Params
    output: float
    output_interval: tuple[float, float]


@dataclass(frozen=True)
class Plan(Shown):
    """One run, before it is started.

    Attributes:
        params: the configuration.
        target_cost: what was asked for, in the sweep's unit.
        extrapolation: ``target_cost`` over the sweep's dearest run.
        level: of the intervals.
        output, cost: medians of the predicted measurements.
        output_interval, cost_interval: where they are expected, at ``level``.
        warnings: what to know before betting on it.
        n_params, tokens: of the run, as far as the sweep tells; else None.
        epochs: tokens over the unique ones; None where these were not given.
        memory_gib: of weights, gradients and Adam's state in mixed precision, without activations.
        budget: in FLOPs, GPU-hours and money, with what failures take; None for a bare cost.
        decisions: each number of the configuration: how well it is known, and what a factor of two
            beside it would cost.
        ladder: check runs, cheapest first.
        alternatives: what the ways of planning that were weighed would each run.
        job: a sweep file for this one configuration, as ``carbs sweep`` takes it.
        bounds, fixed: as they were asked for.
        expectation: of what runs measure, with the front that it rests on.
    """

    params: Params
    target_cost: float
    extrapolation: float
    level: float
    output: float
    output_interval: tuple[float, float]
    cost: float
    cost_interval: tuple[float, float]
    warnings: tuple[str, ...]
    n_params: float | None = None
    tokens: float | None = None
    epochs: float | None = None
    memory_gib: float | None = None
    budget: Budget | None = None
    decisions: tuple[Decision, ...] = ()
    ladder: tuple[Rung, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    job: Mapping[str, Any] = field(default_factory=dict, repr=False)
    bounds: Bounds = field(default_factory=dict, repr=False)
    fixed: Mapping[str, Any] = field(default_factory=dict, repr=False)
    expectation: Expectation | None = field(default=None, repr=False, compare=False)

    def job_file(self) -> str:
        """``job`` as YAML: ``carbs sweep FILE`` trains the configuration, once."""
        return yaml.safe_dump(dict(self.job), sort_keys=False)

    @on_one_thread
    def table(self, costs: Sequence[float]) -> pd.DataFrame:
        """What other budgets would buy, under the same bounds: one row a cost, in their order.

        Columns: ``cost``, ``output`` with ``low`` and ``high``, and one for each parameter. An
        :class:`ExtrapolationWarning` names costs more than a thousand times the sweep's dearest
        run, and those where the expectation is worse than for less: it is so wide there that its
        median says nothing.

        Raises:
            ValueError: the plan has no front, or a cost is not positive and finite.
        """
        if self.expectation is None:
            raise ValueError("this plan does not know its sweep: make it with plan()")
        found = expected_at(self.expectation, costs, self.bounds, self.fixed)
        front = self.expectation.front
        by_cost = found.sort_values("cost")
        losses = by_cost["output"] if front.direction == "minimize" else -by_cost["output"]
        margin = 1e-3 * (by_cost["high"] - by_cost["low"])
        is_far = (found["cost"] > TOO_FAR * front.dearest) | (losses > losses.cummin() + margin)
        if is_far.any():
            far = ", ".join(f"{cost:.3g}" for cost in found["cost"][is_far])
            warnings.warn(
                f"the outputs at costs of {far} are no guide: the sweep's dearest run cost "
                f"{front.dearest:.3g}, and what holds in it need not hold so far out; search "
                "nearer to them first",
                ExtrapolationWarning,
                stacklevel=3,
            )
        return found

    def figure(self, *, cost_unit: str = "", output_unit: str = "") -> Figure:
        """Runs, front, what budgets up to this one would buy, check runs, and the run planned.

        Args:
            cost_unit, output_unit: for the axes; empty for none.

        Raises:
            ValueError: the plan has no front.
        """
        from carbs.analysis.report.plan_plot import plot_plan  # draws with matplotlib

        return plot_plan(self, cost_unit=cost_unit, output_unit=output_unit).figure  # type: ignore[return-value]  # of no subfigure

    def summary(self) -> pd.DataFrame:
        """The predictions: quantity, estimate, interval."""
        return pd.DataFrame(
            [
                ["output", self.output, *self.output_interval],
                ["cost", self.cost, *self.cost_interval],
            ],
            columns=["quantity", "estimate", "low", "high"],
        )

    def __repr__(self) -> str:
        output = with_interval(self.output, self.output_interval)
        cost = with_interval(self.cost, self.cost_interval)
        return f"Plan({in_a_line(self.params)}; output {output}, cost {cost})"

    def _repr_html_(self) -> str:
        notes = "".join(f"<li>{html.escape(warning)}</li>" for warning in self.warnings)
        return (
            f"<p>{html.escape(in_a_line(self.params))}</p>{super()._repr_html_()}<ul>{notes}</ul>"
        )


@dataclass(frozen=True)
class Verdict:
    """A measured run beside its prediction, and what it means for the large one.

    Attributes:
        verdict: ``on the curve``, or ``better`` or ``worse`` than its interval.
        output: as measured; ``expected`` with its ``interval``.
        before, after: the large run's plan without and with this measurement.
    """

    verdict: Literal["on the curve", "better", "worse"]
    output: float
    expected: float
    interval: tuple[float, float]
    before: Plan
    after: Plan


@on_one_thread
def fit_front_law(front: FrontModel, n_resamples: int = 200) -> ComputeLaw:
    """The law of loss over cost, through the runs on the Pareto front.

    The cheapest run is on every front, however bad it is: only runs that do better than the one
    nearest the search centre count.

    Raises:
        ValueError: outputs to be maximised, or fewer than four such runs.
    """
    if front.direction == "maximize":
        raise ValueError("a scaling law needs a loss, but the outputs are to be maximized")
    measured = [observation for observation in front.observations if not observation.is_forecast]
    costs = np.array([observation.cost for observation in measured])
    losses = np.array([observation.output for observation in measured])
    Z = front.space.encode_all([observation.params for observation in measured])
    center_loss = losses[np.argmin(np.square(Z).sum(axis=1))]
    chosen = pareto_front(costs, losses)
    chosen = chosen[losses[chosen] <= center_loss]
    with warnings.catch_warnings():  # the law says it too, where it is shown
        warnings.simplefilter("ignore", UndeterminedLawWarning)
        return fit_compute_law(costs[chosen], losses[chosen], n_resamples)


@on_one_thread
def plan(
    data: FrontModel | CARBS | SearchResult | Study | pd.DataFrame,
    cost: float | None = None,
    *,
    flops: float | None = None,
    gpu_hours: float | None = None,
    money: float | None = None,
    gpu: str = "H100",
    n_gpus: int = 1,
    utilisation: float = 0.4,
    price_per_gpu_hour: float | None = None,
    failures: Failures | None = None,
    unique_tokens: float | None = None,
    bounds: Bounds | None = None,
    fixed: Mapping[str, Any] | None = None,
    space: SearchSpace | None = None,
    direction: Direction | None = None,
    level: float = 0.9,
    sweep: Mapping[str, Any] | None = None,
) -> Plan:
    """The best configuration for a budget, and what to expect of it.

    A budget in FLOPs, GPU-hours or money becomes a cost through the FLOPs that the sweep's runs
    recorded (the metric ``flops``). Without them, the sweep's cost is taken to be FLOPs for a
    budget in FLOPs, and GPU-seconds for the others, and a warning says so.

    Args:
        data: the result of :func:`carbs.minimize` or its optimizer, a study, a frame of runs, or a
            front from :func:`carbs.analysis.fit_front`.
        cost: of the run, in the sweep's unit; or one of the next three.
        flops: of useful work.
        gpu_hours: rented.
        money: in the unit of ``price_per_gpu_hour``.
        gpu, n_gpus, utilisation, price_per_gpu_hour, failures: as for :class:`Budget`.
        unique_tokens: that there are, for the epochs.
        bounds: of parameters, in place of the sweep's: ``{"depth": (None, 32)}``; None leaves an
            end as it is.
        fixed: values of parameters that are given: ``{"width": 1024}``.
        space, direction, level: as for
            :func:`carbs.analysis.front.hyperparameters.hyperparameter_curves`.
        sweep: the sweep file's contents, for the job file: its function, settings, executor.

    Raises:
        ValueError: no budget or more than one, one that cannot be understood, or one in FLOPs for
            runs whose cost cannot be in FLOPs; bounds or values that a parameter cannot have.
    """
    front = as_front(data, space=space, direction=direction, level=level)
    metrics = (
        run_metrics(data, front.space)
        if isinstance(data, (Study, pd.DataFrame))
        else pd.DataFrame()
    )
    notes: list[str] = []
    budget = None
    if cost is None:
        if flops is None and gpu_hours is None and money is None:
            raise ValueError(
                "give one of flops, gpu_hours and money, or a cost in the sweep's unit"
            )
        budget = Budget.of(
            flops=flops,
            gpu_hours=gpu_hours,
            money=money,
            gpu=gpu,
            n_gpus=n_gpus,
            utilisation=utilisation,
            price_per_gpu_hour=price_per_gpu_hour,
            failures=failures,
        )
        cost, note = _cost_of(budget, front, metrics, is_flops=flops is not None)
        notes += [note] if note else []
    elif not all(amount is None for amount in (flops, gpu_hours, money)):
        raise ValueError("give a cost, or a budget in FLOPs, GPU-hours or money, and not both")
    elif not (math.isfinite(cost) and cost > 0):
        raise ValueError(f"cost is {cost}, expected a positive, finite number")
    limits = Limits.of(front.space, bounds or {}, fixed or {})
    if limits.space is not front.space:
        front = fit_front(
            limits.space,
            front.observations,
            front.failures,
            direction=front.direction,
            level=front.level,
            known_cost=front.known_cost,
        )
    expectation = Expectation.of(front)
    reach = Reach(front, limits)
    found = candidates(expectation, reach, cost)
    z = best_at_cost(expectation, reach, cost, found)
    params = front.space.decode(z)
    low, middle, high = _expected(expectation, z)
    tail = (1 - front.level) / 2
    costs = front.surface.cost.quantiles(z[None, :], (tail, 0.5, 1 - tail))[0]
    tokens = _number(_TOKENS, TOKEN_EXPONENTS, params, metrics, front, z)
    n_params = _number(_PARAMETERS, SIZE_EXPONENTS, params, metrics, front, z)
    epochs = tokens / unique_tokens if tokens is not None and unique_tokens else None
    memory = None if n_params is None else n_params * _BYTES_PER_PARAMETER / 2**30
    curves = hyperparameter_curves(front)
    notes += prediction_caveats(
        expectation, curves, z, cost, float(costs[1]), bounds=bounds or {}, given=fixed or {}
    )
    if tokens is not None:
        notes += repetition_caveats(tokens, unique_tokens, params, metrics)
    if memory is not None and budget is not None and memory > GPUS[gpu].memory_gib * n_gpus:
        notes.append(f"{memory:.0f} GiB of weights and optimizer do not fit on {n_gpus} x {gpu}")
    notes += version_caveats(metrics)
    return Plan(
        params=params,
        target_cost=cost,
        extrapolation=cost / front.dearest,
        level=front.level,
        output=middle,
        output_interval=(low, high),
        cost=float(costs[1]),
        cost_interval=(float(costs[0]), float(costs[2])),
        warnings=tuple(notes),
        n_params=n_params,
        tokens=tokens,
        epochs=epochs,
        memory_gib=memory,
        budget=budget,
        decisions=decisions(expectation, reach, z, cost, curves),
        ladder=_ladder(expectation, reach, z, cost),
        alternatives=_alternatives(expectation, found),
        job=_job(front.space, params, sweep or {}),
        bounds=bounds or {},
        fixed=fixed or {},
        expectation=expectation,
    )


@on_one_thread
def check(
    planned: Plan, run: Observation | Mapping[str, Any], *, level: float | None = None
) -> Verdict:
    """Lay a measured run beside what was expected of it, and say what the plan becomes with it.

    Args:
        planned: the large run.
        run: with ``params``, ``output`` and ``cost``.
        level: of the interval that the run is judged by; the plan's by default.

    Raises:
        ValueError: the plan has no front, or the run no such values.
    """
    if planned.expectation is None:
        raise ValueError("this plan does not know its sweep: make it with plan()")
    front = planned.expectation.front
    if not isinstance(run, Observation):
        try:
            run = Observation(
                params=front.space.check(run["params"]), output=run["output"], cost=run["cost"]
            )
        except KeyError as error:
            raise ValueError(f"the run lacks {error}: give params, output and cost") from None
    judged = replace(planned.expectation, front=replace(front, level=level or front.level))
    z = front.space.encode(run.params)
    low, middle, high = _expected(judged, z)
    sign = 1.0 if front.direction == "minimize" else -1.0
    if low <= run.output <= high:
        verdict: Literal["on the curve", "better", "worse"] = "on the curve"
    else:
        verdict = "better" if sign * run.output < sign * middle else "worse"
    refitted = fit_front(
        front.space,
        [*front.observations, run],
        front.failures,
        direction=front.direction,
        level=front.level,
        known_cost=front.known_cost,
    )
    after = plan(refitted, planned.target_cost, bounds=planned.bounds, fixed=planned.fixed)
    return Verdict(verdict, run.output, middle, (low, high), planned, after)


@on_one_thread
def expected_at(
    expectation: Expectation,
    costs: Sequence[float],
    bounds: Bounds | None = None,
    fixed: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """The best configuration at each cost and what it is expected to give, see :meth:`Plan.table`.

    Raises:
        ValueError: a cost is not positive and finite.
    """
    front = expectation.front
    reach = Reach(front, Limits.of(front.space, bounds or {}, fixed or {}))
    rows = []
    for cost in costs:
        if not (math.isfinite(cost) and cost > 0):
            raise ValueError(f"cost is {cost}, expected a positive, finite number")
        z = best_at_cost(expectation, reach, cost)
        low, middle, high = _expected(expectation, z)
        row = {"cost": cost, "output": middle, "low": low, "high": high}
        rows.append(row | flatten(front.space.decode(z)))
    return pd.DataFrame(rows)


def _expected(expectation: Expectation, z: FloatArray) -> tuple[float, float, float]:
    """(low, median, high) of a measurement, in the output's own direction."""
    front = expectation.front
    tail = (1 - front.level) / 2
    sign = 1.0 if front.direction == "minimize" else -1.0
    low, middle, high = np.sort(
        sign * expectation.quantiles(z[None, :], (tail, 0.5, 1 - tail))[0]
    ).tolist()
    return low, middle, high


def _cost_of(
    budget: Budget, front: FrontModel, metrics: pd.DataFrame, is_flops: bool
) -> tuple[float, str | None]:
    """A budget in the sweep's unit of cost, and what had to be assumed."""
    if "flops" in metrics:
        known = metrics[np.isfinite(metrics["flops"]) & (metrics["flops"] > 0)]
        if len(known) >= 4:
            x, y = np.log(known["flops"].to_numpy()), np.log(known["cost"].to_numpy())
            # On the dear half: overheads matter less there, and less still beyond.
            dear = y >= np.median(y)
            slope, level = np.polyfit(x[dear], y[dear], 1)
            return float(np.exp(level + slope * math.log(budget.flops))), None
    if is_flops:
        if budget.flops > _FARTHEST * front.dearest:
            raise ValueError(
                f"no FLOPs are recorded, and a budget of {budget.flops:.3g} FLOPs is "
                f"{budget.flops / front.dearest:.1g} times the cost of the dearest run, "
                f"{front.dearest:.4g}: the runs' cost is in another unit. Give cost= in that unit, "
                "or a column 'flops'"
            )
        return budget.flops, "no FLOPs are recorded: the sweep's cost is taken to be in FLOPs"
    seconds = budget.gpu_hours * 3600 * (1 - budget.failures_share)
    return seconds, "no FLOPs are recorded: the sweep's cost is taken to be seconds of that GPU"


def _number(
    names: tuple[str, ...],
    exponents: Mapping[Role, float],
    params: Params,
    metrics: pd.DataFrame,
    front: FrontModel,
    z: FloatArray,
) -> float | None:
    """A parameter of one of these names, or a metric, continued like a cost."""
    for name in names:
        value = params.get(name)
        if isinstance(value, (int, float)):
            return float(value)
    for name in names:
        if name in metrics:
            known = metrics[np.isfinite(metrics[name]) & (metrics[name] > 0)]
            ids = {observation.id: observation for observation in front.observations}
            rows = [(ids[i], v) for i, v in zip(known["id"], known[name], strict=True) if i in ids]
            if len(rows) >= 4:
                Z = front.space.encode_all([observation.params for observation, _ in rows])
                values = np.array([float(value) for _, value in rows])
                model = CostModel.fit(front.space, Z, values, exponents, has_overhead=False)
                return float(model.quantiles(z[None, :], (0.5,))[0, 0])
    return None


def _ladder(expectation: Expectation, reach: Reach, z: FloatArray, cost: float) -> tuple[Rung, ...]:
    front = expectation.front
    rungs = []
    for share in _RUNGS:
        if share * cost < 1.2 * front.dearest:
            continue
        own = best_at_cost(expectation, reach, share * cost)
        tells = front.surface.tells(own, z)
        low, middle, high = _expected(expectation, own)
        params = front.space.decode(own)
        rungs.append(Rung(share * cost, share, params, middle, (low, high), tells))
    chosen: list[Rung] = []
    for rung in sorted(rungs, key=lambda rung: -rung.tells):
        if sum(other.share for other in chosen) + rung.share <= _LADDER_SHARE:
            chosen.append(rung)
    return tuple(sorted(chosen, key=lambda rung: rung.cost))


def _alternatives(expectation: Expectation, found: Candidates) -> tuple[Alternative, ...]:
    chosen = []
    for i, way in enumerate(WAYS):
        z = found.Z[found.order[found.ways[found.order] == i][0]]
        low, middle, high = _expected(expectation, z)
        params = expectation.front.space.decode(z)
        chosen.append(Alternative(way, params, middle, (low, high)))
    return tuple(chosen)


def _job(space: SearchSpace, params: Params, sweep: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep file with one trial: the search centre is the configuration."""
    job: dict[str, Any] = {"name": f"{sweep.get('name', 'plan')}-large"}
    if sweep.get("command"):
        job |= {"command": copy.deepcopy(sweep["command"]), "shell": bool(sweep.get("shell"))}
    else:
        job["function"] = sweep.get("function") or "my_training:train"
    job["parameters"] = {}
    for param in space.params:
        entry = param.space.model_dump(exclude_defaults=True, mode="python")
        entry = {"space": param.space.kind, **{k: v for k, v in entry.items() if k != "kind"}}
        entry = {k: list(v) if isinstance(v, tuple) else v for k, v in entry.items()}
        entry["search_center"] = params.get(param.name, param.search_center)
        if param.when:
            entry["when"] = {name: list(values) for name, values in param.when.items()}
        if param.role:
            entry["role"] = param.role
        job["parameters"][param.name] = entry
    kept = ("constraints", "cost", "settings", "direction", "executor", "executor_options", "seed")
    job |= {name: copy.deepcopy(sweep[name]) for name in kept if sweep.get(name)}
    job |= {name: sweep[name] for name in ("output_unit", "cost_unit") if sweep.get(name)}
    return {**job, "max_trials": 1}
