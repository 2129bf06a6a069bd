"""How the best value of a parameter moves with the cost, as far as that is known by its role.

They are priors (:mod:`carbs.analysis.laws.usual`), which the runs overrule.
"""

from __future__ import annotations

import numpy as np

from carbs.analysis.laws.usual import GROWTH
from carbs.roles import COST_EXPONENTS, SIZE_EXPONENTS, role_of
from carbs.search_space import Role, SearchSpace
from carbs.spaces import FloatArray, LogSpace

# A parameter that costs less than this share of what its role says has another. Small models leave
# the machine idle, and so their width costs less.
_LEAST_SHARE = 0.25


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
    costs: dict[str, float] = {}
    for param in space.params:
        role, exponent = role_of(param), float(exponents[space.slices[param.name].start])
        is_so = role not in COST_EXPONENTS or exponent >= _LEAST_SHARE * COST_EXPONENTS[role]
        if role in GROWTH and isinstance(param.space, LogSpace) and not param.when and is_so:
            roles[param.name] = role
            if role in COST_EXPONENTS:
                costs[param.name] = exponent
    known = set(roles.values())
    if "tokens" not in known or not known & set(SIZE_EXPONENTS):
        return {}
    believed = dict(GROWTH)
    mean, deviation = GROWTH["parameters"]
    alone: tuple[tuple[Role, Role], ...] = (("width", "depth"), ("depth", "width"))
    for role, other in alone:
        if other not in known:
            believed[role] = mean / SIZE_EXPONENTS[role], deviation / SIZE_EXPONENTS[role]
    growing = {name: believed[roles[name]][0] for name in costs}
    usual = sum(share * COST_EXPONENTS[roles[name]] for name, share in growing.items())
    factor = usual / sum(share * costs[name] for name, share in growing.items())
    return {
        name: (factor * believed[role][0], factor * believed[role][1])
        for name, role in roles.items()
    }


def growth(space: SearchSpace, exponents: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The same in basic units, ``(d,)`` each: 0 and infinity for what nothing is known of."""
    means, deviations = np.zeros(space.n_dims), np.full(space.n_dims, np.inf)
    known = growth_of(space, exponents)
    for param in space.params:
        if param.name in known and isinstance(param.space, LogSpace):
            i = space.slices[param.name].start
            means[i], deviations[i] = np.array(known[param.name]) / param.space.scale
    return means, deviations
