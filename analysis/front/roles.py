"""Which size of a training run a parameter is: stated in the sweep, or guessed from its name.

So it is known before any run how cost grows with it: a prior, which the runs overrule.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from carbs.search_space import Param, Role
from carbs.spaces import LogSpace

_NAMES: dict[Role, str] = {
    "parameters": r"n|n_?params?|num_params|(n_)?parameters|model_size|non_embedding_params",
    "tokens": r"d|((n|num|train|training|total|max)_)?tokens|token_budget|data_size",
    "width": r"width|d_?model|dim|(hidden|model|embed|embedding)_(dim|size)|n_embd",
    "depth": r"depth|((n|num)_)?(layers?|blocks)",
}
# Decades of cost for a decade of the parameter: training takes 6 N D operations, and N is 12 times
# depth times the square of width (Kaplan et al. 2020, "Scaling Laws for Neural Language Models",
# sec. 2.1).
SIZE_EXPONENTS: Mapping[Role, float] = {"parameters": 1.0, "width": 2.0, "depth": 1.0}
TOKEN_EXPONENTS: Mapping[Role, float] = {"tokens": 1.0}
COST_EXPONENTS: Mapping[Role, float] = {**SIZE_EXPONENTS, **TOKEN_EXPONENTS}


def role_of(param: Param) -> Role:
    """As stated, or guessed; ``none`` for what is not known by its name."""
    if param.role is not None:
        return param.role
    if not isinstance(param.space, LogSpace):
        return "none"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.split(r"__|\.", param.name)[-1]).lower()
    return next((role for role, names in _NAMES.items() if re.fullmatch(names, name)), "none")
