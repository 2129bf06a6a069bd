"""Parameters and the search space: what the optimizer sees of all of them together.

The basic coordinates of every parameter (:mod:`carbs.spaces`) stand side by side in one vector
``z``, shape ``(d,)``. A conditional parameter that is inactive is absent from the configuration;
among the basic coordinates it stays at the centre's, where it makes no difference between two
points.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from carbs.constraints import Condition, Constraint, Function, as_predicate, as_tuple
from carbs.display import table
from carbs.expressions import Expression
from carbs.spaces import (
    LARGEST_GRID,
    ChoiceSpace,
    FloatArray,
    MixtureSpace,
    NumericSpace,
    Params,
    Scalar,
    Space,
    is_same,
)

Role = Literal["parameters", "tokens", "width", "depth", "learning_rate", "batch_size", "none"]


class Param(BaseModel):
    """A searched parameter: its name, its space, and where the search starts.

    Args:
        name: not empty. Dots are as good as letters, so that it may be that of a field of a field,
            ``model.width``; but nothing lies inside of a mixture except its components.
        space: one of :mod:`carbs.spaces`.
        search_center: a good, cheap value; the first suggestion is made of these.
        when: the parameter exists only when each :class:`ChoiceSpace` parameter named here is
            active and has the value given, or one of those given:
            ``{"optimizer": ["sgd", "nesterov"]}``. By default it always exists.
        role: what it is in the training of a language model, which is known to scale: the model's
            ``parameters``, its ``width`` or ``depth``, the ``tokens``, the ``learning_rate``, the
            ``batch_size``, or ``none``. By default guessed from its name. The search compares
            learning rates beside the best one for the model's size; plans know how all of them
            grow.

    Raises:
        ValueError: the centre does not lie in the space.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    space: Space
    search_center: Any
    when: dict[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]] = {}
    role: Role | None = None

    def __init__(
        self,
        name: str,
        space: Any,
        search_center: Any,
        when: Mapping[str, Scalar | Sequence[Scalar]] | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(
            name=name, space=space, search_center=search_center, when=when or {}, **fields
        )

    def __repr__(self) -> str:
        """As it would be written."""
        when = {
            parent: choices[0] if len(choices) == 1 else list(choices)
            for parent, choices in self.when.items()
        }
        more = f", when={when!r}" if when else ""
        more += f", role={self.role!r}" if self.role else ""
        return f"Param({self.name!r}, {self.space!r}, search_center={self.search_center!r}{more})"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        return _html([self])

    @field_validator("when", mode="before")
    @classmethod
    def _in_lists(cls, when: Any) -> Any:
        if not isinstance(when, Mapping):
            return when
        return {
            name: values if isinstance(values, (list, tuple)) else [values]
            for name, values in when.items()
        }

    @model_validator(mode="after")
    def _check_center(self) -> Param:
        try:
            center = self.space.check(self.search_center)
            if isinstance(self.space, NumericSpace) and self.space.is_integer:
                step = self.space.rounding_factor
                if int(center) % step:  # type: ignore[arg-type]  # checked to be a number
                    raise ValueError(f"{center} is no multiple of the rounding_factor {step}")
        except ValueError as error:
            raise ValueError(f"search_center of parameter {self.name!r}: {error}") from None
        object.__setattr__(self, "search_center", center)
        object.__setattr__(self, "space", self.space.around(center))
        return self


class SearchSpace:
    """All parameters together: configurations to points of the basic space and back.

    Args:
        params: at least one parameter, with distinct names.
        constraints: what every suggestion meets, one or several, see :mod:`carbs.constraints`.
            Configurations that somebody else chose need not meet them: :meth:`check` does not look.
        cost: an expression over the parameters (:mod:`carbs.expressions`) that costs are known to
            be proportional to, or nearly: ``"6 * n_params * tokens"``. For plans; the search takes
            no notice.

    Attributes:
        n_dims: the number of basic dimensions of all parameters.
        slices: for each parameter's name, its place among the basic dimensions.
        shares: of each basic dimension in its parameter, ``1 / n`` where that has n: ``(n_dims,)``.
        center: the basic point at which the search starts, shape ``(n_dims,)``.
        center_params: its configuration.

    Raises:
        ValueError: params is no list of Params, names occur twice or lie inside of a mixture, a
            ``when`` cannot be met, a constraint is no expression over the parameters, or the centre
            violates it.
    """

    def __init__(
        self,
        params: Sequence[Param],
        constraints: Iterable[Constraint | Condition | Function] = (),
        cost: str | None = None,
    ) -> None:
        if isinstance(params, Param):
            raise ValueError(f"params is one Param, expected a list of them: [{params!r}]")
        self.params = tuple(params)
        for param in self.params:
            if not isinstance(param, Param):
                raise ValueError(f"params holds {param!r}, a {type(param).__name__}, no Param")
        names = [param.name for param in self.params]
        if not names:
            raise ValueError("no parameters: a search needs at least one Param")
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"parameter names must be distinct, but {twice} occur twice")
        for mix in (param.name for param in self.params if isinstance(param.space, MixtureSpace)):
            inside = [name for name in names if name.startswith(f"{mix}.")]
            if inside:
                raise ValueError(
                    f"parameter {inside[0]!r} reads as a component of the mixture {mix!r}: give "
                    "one of them another name"
                )
        sizes = [param.space.n_dims for param in self.params]
        ends = np.cumsum(sizes).tolist()
        self.n_dims: int = ends[-1]
        self.slices = {
            param.name: slice(end - param.space.n_dims, end)
            for param, end in zip(self.params, ends, strict=True)
        }
        self.shares = np.repeat(1 / np.array(sizes), sizes)
        values = [param.space.all_values(LARGEST_GRID) for param in self.params]
        self._n_points = math.prod(math.inf if v is None else len(v) for v in values)
        self._conditions = _conditions(self.params)
        centers: Params = {param.name: param.search_center for param in self.params}
        active = self.active_names(centers)
        self.center_params = {name: value for name, value in centers.items() if name in active}
        self.center = np.concatenate(
            [param.space.encode(param.search_center, param.search_center) for param in self.params]
        )
        self.constraints = tuple(
            as_predicate(constraint, centers) for constraint in as_tuple(constraints)
        )
        for constraint in self.constraints:
            if not constraint.holds(self.center_params):
                raise ValueError(
                    f"the search centre {self.center_params} violates the {constraint}: move a "
                    "search_center, or change the constraint"
                )

        self.cost = None if cost is None else Expression(cost, centers, "cost")
        if self.cost is not None:
            found = self._costs(np.tile(self.center, (2, 1)))
            if not (np.isfinite(found).all() and (found > 0).all()):
                raise ValueError(
                    f"{self.cost} is {found[0]:.4g} at the search centre {self.center_params}: "
                    "expected a positive number"
                )

    def __repr__(self) -> str:
        lines = [*map(repr, self.params), *(str(constraint) for constraint in self.constraints)]
        return "SearchSpace(\n  " + "\n  ".join(lines) + "\n)"

    def _repr_html_(self) -> str:
        return _html(self.params, self.constraints)

    def active_names(self, values: Mapping[str, Any]) -> set[str]:
        """The parameters that exist beside these values of the parameters that they depend on."""
        active: set[str] = set()
        for name, when in self._conditions.items():
            if all(
                parent in active and any(is_same(choice, values.get(parent)) for choice in choices)
                for parent, choices in when.items()
            ):
                active.add(name)
        return active

    def active_rows(self, Z: FloatArray) -> dict[str, NDArray[np.bool_]]:
        """For each parameter's name, at which basic points ``(n, n_dims)`` it exists: ``(n,)``."""
        spaces = {param.name: param.space for param in self.params}
        rows: dict[str, NDArray[np.bool_]] = {}
        for name, when in self._conditions.items():
            rows[name] = np.ones(len(Z), dtype=bool)
            for parent, choices in when.items():
                space = spaces[parent]
                assert isinstance(space, ChoiceSpace)
                chosen = np.argmax(Z[:, self.slices[parent]], axis=1)
                is_met = np.isin(chosen, [space.index(choice) for choice in choices])
                rows[name] &= rows[parent] & is_met
        return rows

    def log10_cost(self, Z: FloatArray) -> FloatArray:
        """Of the expression for the cost at basic points ``(n, n_dims)``, shape ``(n,)``.

        Raises:
            ValueError: there is no expression, or it is not positive somewhere.
        """
        costs = self._costs(Z)
        if not (costs > 0).all():
            params = self.decode(Z[int(np.argmin(costs > 0))])
            raise ValueError(f"{self.cost} is not positive at {params}")
        return np.asarray(np.log10(costs))

    def _costs(self, Z: FloatArray) -> FloatArray:
        if self.cost is None:
            raise ValueError("the search space has no expression for its cost")
        columns = {
            param.name: param.space.columns(Z[:, self.slices[param.name]], param.search_center)
            for param in self.params
            if param.name in self.cost.names
        }
        return np.broadcast_to(np.asarray(self.cost.values(columns), dtype=float), len(Z))

    def allows(self, params: Mapping[str, Any]) -> bool:
        """Whether a configuration meets every constraint.

        Raises:
            ValueError: names the constraint that cannot be evaluated.
        """
        return all(constraint.holds(params) for constraint in self.constraints)

    def check(self, values: Mapping[str, Any]) -> Params:
        """A configuration in plain types, with this space's active parameters and no others.

        Constraints are not looked at: what was measured is worth knowing anyway.

        Raises:
            ValueError: names the parameter that is missing, unknown, inactive or out of its space.
        """
        active = self.active_names(values)
        if set(values) != active:
            raise ValueError(self._misfit(values, active))
        checked: Params = {}
        for param in self.params:
            if param.name in active:
                try:
                    checked[param.name] = param.space.check(values[param.name])
                except ValueError as error:
                    raise ValueError(f"parameter {param.name!r}: {error}") from None
        return checked

    def _misfit(self, values: Mapping[str, Any], active: set[str]) -> str:
        missing, unknown = sorted(active - set(values)), sorted(set(values) - set(self.slices))
        inactive = [name for name in self.slices if name not in active]
        return "; ".join(
            [
                f"the configuration must name {sorted(active)}",
                *([f"missing: {missing}"] if missing else []),
                *([f"unknown: {unknown}"] if unknown else []),
                *(self._why_inactive(name, values, active) for name in inactive),
            ]
        )

    def _why_inactive(self, name: str, values: Mapping[str, Any], active: set[str]) -> str:
        reasons = []
        for parent, choices in self._conditions[name].items():
            found = repr(values.get(parent)) if parent in active & set(values) else "absent"
            reasons.append(f"when {parent!r} is one of {list(choices)}, and here it is {found}")
        surplus = "is inactive and must not be given" if name in values else "is inactive"
        return f"{name!r} {surplus}: it exists only {', and '.join(reasons)}"

    def encode(self, values: Mapping[str, Any]) -> FloatArray:
        """Basic coordinates of a configuration, shape ``(n_dims,)``."""
        return np.asarray(self.encode_all([values])[0])

    def encode_all(self, configurations: Sequence[Mapping[str, Any]]) -> FloatArray:
        """Basic coordinates of many configurations, shape ``(n, n_dims)``."""
        Z = np.tile(self.center, (len(configurations), 1))
        is_conditional = any(self._conditions.values())
        active = [self.active_names(values) for values in configurations] if is_conditional else []
        for param in self.params:
            rows = [i for i in range(len(Z)) if not is_conditional or param.name in active[i]]
            if rows:
                values = [configurations[i][param.name] for i in rows]
                Z[rows, self.slices[param.name]] = param.space.encode_all(
                    values, param.search_center
                )
        return Z

    def decode(self, z: FloatArray) -> Params:
        """The configuration at basic coordinates ``z``, shape ``(n_dims,)``."""
        if np.array_equal(z, self.center):  # free of rounding
            return dict(self.center_params)
        active = self.active_rows(z[None, :])
        return {
            param.name: param.space.decode(z[self.slices[param.name]], param.search_center)
            for param in self.params
            if active[param.name][0]
        }

    def next_values(self, low: FloatArray, high: FloatArray) -> tuple[FloatArray, FloatArray]:
        """A box of basic points, ``(n_dims,)`` each, out to the whole numbers next to its sides."""
        low, high = low.copy(), high.copy()
        for param in self.params:
            if isinstance(param.space, NumericSpace):
                i = self.slices[param.name].start
                low[i], high[i] = param.space.next_values(low[i], high[i], param.search_center)
        return low, high

    def all_points(self, n_most: int) -> FloatArray | None:
        """Every basic point of a discrete space, ``(n, n_dims)``; None for more than ``n_most``.

        Constraints are not looked at.
        """
        if self._n_points > n_most:
            return None
        each = [
            param.space.encode_all(param.space.all_values(n_most) or (), param.search_center)
            for param in self.params
        ]
        places = np.indices([len(values) for values in each]).reshape(len(each), -1)
        Z = np.concatenate([x[i] for x, i in zip(each, places, strict=True)], axis=1)
        return np.asarray(np.unique(self.snap(Z), axis=0))

    def snap(self, Z: FloatArray) -> FloatArray:
        """The nearest points that a configuration can have, shape ``(n, n_dims)`` in and out."""
        snapped = np.concatenate(
            [
                param.space.snap(Z[:, self.slices[param.name]], param.search_center)
                for param in self.params
            ],
            axis=1,
        )
        for name, is_active in self.active_rows(snapped).items():
            snapped[~is_active, self.slices[name]] = self.center[self.slices[name]]
        return snapped


def _html(params: Sequence[Param], constraints: Sequence[Condition | Function] = ()) -> str:
    rows = [
        [
            param.name,
            repr(param.space),
            param.search_center,
            " and ".join(
                f"{parent} is {' or '.join(map(str, choices))}"
                for parent, choices in param.when.items()
            ),
        ]
        for param in params
    ]
    caption = "\n".join(str(constraint) for constraint in constraints)
    return table(["parameter", "space", "search centre", "when"], rows, caption)


def _conditions(params: Sequence[Param]) -> dict[str, dict[str, tuple[Scalar, ...]]]:
    """Each parameter's ``when`` by its name, parents first."""
    by_name = {param.name: param for param in params}
    for param in params:
        for parent, choices in param.when.items():
            if parent not in by_name:
                raise ValueError(
                    f"parameter {param.name!r}: its 'when' names {parent!r}, which is none of the "
                    f"parameters {sorted(by_name)}"
                )
            space = by_name[parent].space
            if not isinstance(space, ChoiceSpace):
                raise ValueError(
                    f"parameter {param.name!r}: its 'when' names {parent!r}, which must be a choice"
                )
            for choice in choices:
                try:
                    space.index(choice)
                except ValueError as error:
                    raise ValueError(
                        f"parameter {param.name!r}: its 'when' can never be met: {parent} = {error}"
                    ) from None
    try:
        order = list(TopologicalSorter({p.name: set(p.when) for p in params}).static_order())
    except CycleError as error:
        circle = [repr(name) for name in error.args[1]]
        raise ValueError(
            f"parameter {circle[0]}: its 'when' depends on itself: {' -> '.join(circle)}"
        ) from None
    return {name: by_name[name].when for name in order}


class AllowedPoints:
    """The constraints' answers at basic points; each is asked for once, since it may be slow."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._answers: dict[bytes, bool] = {}

    def first(self, Z: FloatArray, order: NDArray[np.intp], n: int) -> NDArray[np.intp]:
        """Indices of the first ``n`` allowed points, or of as many as there are.

        Args:
            Z: basic points, shape ``(q, n_dims)``.
            order: indices of ``Z``, in which to ask, shape ``(q,)``.
        """
        return np.fromiter(islice((i for i in order if self._allows(Z[i])), n), dtype=np.intp)

    def _allows(self, z: FloatArray) -> bool:
        if not self._space.constraints:
            return True
        key = z.tobytes()
        if key not in self._answers:
            self._answers[key] = self._space.allows(self._space.decode(z))
        return self._answers[key]
