"""What to know of a plan before betting on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from carbs.analysis.front.expectation import Expectation
from carbs.analysis.front.hyperparameters import Curve
from carbs.analysis.planning.choice import LIKELY
from carbs.analysis.planning.limits import Bounds
from carbs.search_space import Param
from carbs.spaces import FloatArray, LinearSpace, LogitSpace, LogSpace, Params

# Further out than this, the trend has been followed for longer than it was seen.
_FAR, TOO_FAR = 10.0, 1000.0
# A dearer run than any should be better than all, and not fail, with this probability.
_LEAST_CHANCE = 0.9
# A value lies on its bound when it is as near as this, in scales.
_AT_BOUND = 1e-3
# A law is uncertain when its band is wider than this many decades where it is used.
_WIDE = 0.6
# Up to four epochs, repeated tokens are almost as good as new ones (Muennighoff et al. 2023,
# "Scaling Data-Constrained Language Models", sec. 5).
_HARMLESS_EPOCHS = 4.0
_TOO_OFTEN = (
    "beyond four, repeated tokens are worth less and less, which the prediction does not know"
)


def prediction_caveats(
    expectation: Expectation,
    curves: Sequence[Curve],
    z: FloatArray,
    cost: float,
    median_cost: float,
    bounds: Bounds,
    given: Mapping[str, Any],
) -> list[str]:
    """How far out it is, what it may not reach, how it may fail, and what is uncertain about it.

    Args:
        expectation: that the plan rests on.
        curves: of the hyperparameters.
        z: the planned point, ``(d,)``.
        cost, median_cost: as asked for, and as expected.
        bounds, given: of parameters, as asked for.
    """
    found, front = [], expectation.front
    extrapolation = cost / front.dearest
    if extrapolation > TOO_FAR:
        found.append(
            f"{extrapolation:.3g} times the sweep's dearest run: what holds in the sweep need not "
            "hold so far out; search nearer to that cost first"
        )
    elif extrapolation > _FAR:
        found.append(f"{extrapolation:.0f} times the sweep's dearest run: check on the way there")
    if not 1 / 1.5 < median_cost / cost < 1.5:
        found.append(
            f"the space allows no such run: this one is expected to cost {median_cost:.3g} where "
            f"{cost:.3g} was asked for; widen the bounds"
        )
    best, chance = expectation.chance_of_less(z)
    if chance < _LEAST_CHANCE:
        found.append(
            f"it comes out better than the sweep's best run, {best:.4g}, with a probability of "
            f"only {chance:.0%}: search on, nearer to that cost"
        )
    probability = float(expectation.success.probability(z[None, :])[0])
    likeliest = float(expectation.success.likeliest(z[None, :])[0])
    if probability < _LEAST_CHANCE or likeliest < LIKELY:
        given_too = sorted({*bounds, *given})
        found.append(
            f"the run is expected to fail with probability {1 - min(probability, likeliest):.0%}"
            + (f", with {', '.join(given_too)} as asked for" if given_too else "")
        )
    params = front.space.decode(z)
    for param in front.space.params:
        is_chosen = param.name in params and param.name not in given
        if is_chosen and isinstance(param.space, (LinearSpace, LogSpace, LogitSpace)):
            value = params[param.name]
            ends = [*param.space.limits(), *bounds.get(param.name, ())]
            # Given; or a count, of which there cannot be less than one.
            is_fixed = math.isclose(*param.space.limits())
            is_fixed |= isinstance(param.space, LogSpace) and param.space.is_integer and value == 1
            if not is_fixed and any(end is not None and _is_at(param, value, end) for end in ends):
                found.append(f"{param.name} = {value:.4g} lies on its bound: widen it")
    for curve in curves:
        if curve.law != "log-linear" or not curve.matters or not len(curve.lines):
            continue
        low, high = curve.possible(cost, front.level)
        said = f"{low:.3g} to {high:.3g} ({front.level:.0%})"
        if curve.name in given:
            if not low <= given[curve.name] <= high:
                found.append(
                    f"{curve.name} = {given[curve.name]:g}, as asked for; its law says {said}"
                )
        elif low > 0 and math.log10(high / low) > _WIDE:
            found.append(f"{curve.name} is uncertain there: its law says {said}")
    return found


def _is_at(param: Param, value: Any, end: float) -> bool:
    """Whether a value is an end of its range, but for what the search for it leaves."""
    z, z_end = param.space.encode_all([value, end], param.search_center)[:, 0]
    return bool(abs(z - z_end) < _AT_BOUND)


def repetition_caveats(
    tokens: float, unique_tokens: float | None, params: Params, metrics: pd.DataFrame
) -> list[str]:
    """What is gone over too often: all of the data, or components, if runs have recorded how much.

    Args:
        tokens: of the run.
        unique_tokens: that there are; None to go by what was recorded of each component.
        params: of the run, its mix among them.
        metrics: of the sweep's runs.
    """
    if unique_tokens:
        epochs = tokens / unique_tokens
        if epochs <= _HARMLESS_EPOCHS:
            return []
        return [f"{epochs:.1f} epochs over {unique_tokens:.3g} unique tokens: {_TOO_OFTEN}"]
    newest: dict[str, Any] = {
        str(name): column.dropna().iloc[-1] for name, column in metrics.items() if column.count()
    }
    unique = {
        name.removeprefix("data.").removesuffix(".unique_tokens"): float(value)
        for name, value in newest.items()
        if name.startswith("data.") and name.endswith(".unique_tokens") and value
    }
    mixes = [value for value in params.values() if isinstance(value, Mapping)]
    shares = next((mix for mix in mixes if set(mix) <= set(unique)), None)
    if shares is None:  # not searched: as it was
        read = {name: newest.get(f"data.{name}.tokens", 0.0) for name in unique}
        shares = {name: n / max(sum(read.values()), 1) for name, n in read.items()}
    return [
        f"{epochs:.1f} epochs over component {name!r}, which has {unique[name]:.3g} tokens: "
        f"{_TOO_OFTEN}"
        for name, share in shares.items()
        if (epochs := tokens * share / unique[name]) > _HARMLESS_EPOCHS
    ]


def version_caveats(metrics: pd.DataFrame) -> list[str]:
    """Where the sweep's runs differ in their data, their environment or their questions."""
    found = []
    for name in metrics.columns:
        if name.startswith("data.") and name.endswith(".version"):
            values = [str(value) for value in metrics[name].dropna().unique()]
            if len(values) > 1:
                what = name.removeprefix("data.").removesuffix(".version")
                found.append(
                    f"the sweep's runs differ in the data of {what}: versions "
                    f"{', '.join(values[:5])}"
                )
        if name.startswith("environment."):
            values = sorted({str(value) for value in metrics[name].dropna()})
            if len(values) > 1:
                what = name.removeprefix("environment.")
                found.append(f"the sweep's runs differ in {what}: {', '.join(values[:5])}")
        if name.startswith("evaluations.") and name.endswith(".version"):
            n_versions = metrics[name].nunique()
            if n_versions > 1:
                what = name.removeprefix("evaluations.").removesuffix(".version")
                found.append(f"the sweep's runs were asked {n_versions} versions of {what!r}")
    return found
