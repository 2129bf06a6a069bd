"""What a parameter is in a training run, stated in the sweep or guessed from its name.

So some things are known before any run: how the cost grows with it, and that the best learning rate
falls as the model grows. How its optimum moves with the cost is the analysis's business
(:mod:`carbs.analysis.front.growth`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

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
# Decades that the best learning rate moves by for a decade of a model's parameters. Li et al. 2025,
# "Predictable Scale: Part I", have -.713; where depth stays, the inverse of the width of Yang et
# al. 2021, "Tensor Programs V", sec. 4, is -.5.
_RATE_BY_SIZE = -0.5


def role_of(param: Param) -> Role:
    """As stated, or guessed; ``none`` for what is not known by its name."""
    if param.role is not None:
        return param.role
    if not isinstance(param.space, LogSpace):
        return "none"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.split(r"__|\.", param.name)[-1]).lower()
    return next((role for role, names in _NAMES.items() if re.fullmatch(names, name)), "none")


def comparable(space: SearchSpace) -> FloatArray:
    """Axes ``(d, d)``, as columns, along which configurations of any size compare alike.

    They are those of the basic space, but that a learning rate is counted from the best one of a
    model of its size: what small models say of it then holds for large ones.
    """
    logs = [
        (space.slices[param.name].start, param.space.scale, role_of(param))
        for param in space.params
        if isinstance(param.space, LogSpace) and not param.when
    ]
    sizes = np.zeros(space.n_dims)  # decades of N for a basic unit
    for i, scale, role in logs:
        sizes[i] = SIZE_EXPONENTS.get(role, 0.0) * scale
    axes = np.eye(space.n_dims)
    for i, scale, role in logs:
        if role == "learning_rate":
            axes[:, i] -= _RATE_BY_SIZE / scale * sizes
    return axes
