"""What a parameter is in a training run, stated in the sweep or guessed from its name.

So two things are known before any run: how the cost grows with it, and how its optimum moves with
the cost (:mod:`carbs.analysis.laws.usual`). Both are priors, which the runs overrule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from carbs.analysis.laws.usual import GROWTH
from carbs.search_space import Param, Role, SearchSpace
from carbs.spaces import FloatArray, LogSpace

_NAMES: dict[Role, str] = {
    "parameters": r"n|((n|num|active|non_embedding)_?)*(params?|parameters)|n_active|model_size",
    "tokens": r"d|((n|num|train|training|total|max)_)?tokens|token_budget|data_size",
    "width": r"width|d_?model|dim|(hidden|model|embed|embedding)_(dim|size)|n_embd",
    "depth": r"depth|((n|num)_)?(layers?|blocks)",
    "learning_rate": r"((peak|max|base|initial|init)_)?(lr|learning_rate)",
    "batch_size": r"bs|((global|train)_)?batch(_size)?(_(tokens|sequences))?",
}
# Decades of cost for a decade of the parameter: training takes 6 N D operations, and N is 12 times
# depth times the square of width (Kaplan et al. 2020, "Scaling Laws for Neural Language Models",
# sec. 2.1).
SIZE_EXPONENTS: Mapping[Role, float] = {"parameters": 1.0, "width": 2.0, "depth": 1.0}
TOKEN_EXPONENTS: Mapping[Role, float] = {"tokens": 1.0}
COST_EXPONENTS: Mapping[Role, float] = {**SIZE_EXPONENTS, **TOKEN_EXPONENTS}
# A parameter that costs less than this share of what its role says has another. Small models leave
# the machine idle, and so their width costs less.
_LEAST_SHARE = 0.25


def role_of(param: Param) -> Role:
    """As stated, or guessed; ``none`` for what is not known by its name."""
    if param.role is not None:
        return param.role
    if not isinstance(param.space, LogSpace):
        return "none"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.split(r"__|\.", param.name)[-1]).lower()
    return next((role for role, names in _NAMES.items() if re.fullmatch(names, name)), "none")


def growth_of(space: SearchSpace, exponents: FloatArray) -> dict[str, tuple[float, float]]:
    """By parameter: decades of its optimum for a decade of cost, with what that may be off by.

    Only where both the model and its tokens are searched: otherwise all of the cost goes to one of
    them, and a learning rate may be one of something else than a language model. Where only width
    or depth is, it grows for both.

    Args:
        space: of the configurations.
        exponents: decades of cost for a decade of each dimension, ``(d,)``, as the runs have them:
            what costs less than a quarter of what its name says is something else.
    """
    roles: dict[str, Role] = {}
    for param in space.params:
        role, costs = role_of(param), float(exponents[space.slices[param.name].start])
        is_so = role not in COST_EXPONENTS or costs >= _LEAST_SHARE * COST_EXPONENTS[role]
        if role in GROWTH and isinstance(param.space, LogSpace) and not param.when and is_so:
            roles[param.name] = role
    known = set(roles.values())
    if "tokens" not in known or not known & set(SIZE_EXPONENTS):
        return {}
    believed = dict(GROWTH)
    mean, deviation = GROWTH["parameters"]
    alone: tuple[tuple[Role, Role], ...] = (("width", "depth"), ("depth", "width"))
    for role, other in alone:
        if other not in known:
            believed[role] = mean / SIZE_EXPONENTS[role], deviation / SIZE_EXPONENTS[role]
    return {name: believed[role] for name, role in roles.items()}


def growth(space: SearchSpace, exponents: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The same in basic units, ``(d,)`` each: 0 and infinity for what nothing is known of."""
    means, deviations = np.zeros(space.n_dims), np.full(space.n_dims, np.inf)
    known = growth_of(space, exponents)
    for param in space.params:
        if param.name in known and isinstance(param.space, LogSpace):
            i = space.slices[param.name].start
            means[i], deviations[i] = np.array(known[param.name]) / param.space.scale
    return means, deviations
