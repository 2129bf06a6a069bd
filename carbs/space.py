"""Parameters, their spaces, and the search ("basic") space in which the optimizer works.

Notation
--------
x       a value as the user writes it: a number, a category, a mapping of mixture weights
u       the warped value: x, log10 x, or log10 of the odds
z       the basic coordinates, shape ``(n_dims,)``; for a number ``z = (u(x) - u(centre)) / scale``
Z       many basic points, shape ``(n, n_dims)``

The centre lies at the origin and a distance of one is one ``scale``: the step over which the user
expects a parameter to matter. Every space can be left unbounded. Integers, rounding, bounds,
categories and the simplex are handled by :meth:`snap`, which moves a basic point to the nearest
one that a configuration can have, so that a candidate is scored as what would really be run.

Mixture weights live in log-ratio coordinates (Aitchison 1986, "The Statistical Analysis of
Compositional Data", ch. 4) with an offset, so that a weight of zero is a point like any other.

A conditional parameter that is inactive is absent from the configuration; among the basic
coordinates it stays at the centre's, where it makes no difference between two points.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from carbs.constraints import Constraint, as_predicate

FloatArray = NDArray[np.float64]
Scalar = bool | int | float | str
Value = Scalar | dict[str, float]
Params = dict[str, Value]

_LARGEST_WARP = 300.0  # 10 ** 300 is still a float
_LARGEST_GRID = 10_000


class _Space(BaseModel):
    """What every space offers. ``center`` is always a valid value of the space."""

    # JSON with "Infinity": a bound that is not there must survive being saved.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @property
    @abstractmethod
    def n_dims(self) -> int:
        """Number of basic dimensions."""

    @abstractmethod
    def check(self, value: Any) -> Value:
        """Return ``value`` in its plain type, or raise ``ValueError`` saying what was expected."""

    @abstractmethod
    def encode_all(self, values: Sequence[Any], center: Any) -> FloatArray:
        """Basic coordinates of values, shape ``(n, n_dims)``."""

    def encode(self, value: Any, center: Any) -> FloatArray:
        """Basic coordinates of a value, shape ``(n_dims,)``."""
        return np.asarray(self.encode_all([value], center)[0])

    @abstractmethod
    def decode(self, z: FloatArray, center: Any) -> Value:
        """The value at basic coordinates ``z``, shape ``(n_dims,)``; bounds are respected."""

    @abstractmethod
    def snap(self, Z: FloatArray, center: Any) -> FloatArray:
        """The nearest points that a value can have, shape ``(n, n_dims)`` in and out."""

    def all_values(self, n_most: int) -> list[Value] | None:
        """Every value, where there are at most ``n_most``; else None."""
        return None


class _NumericSpace(_Space):
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    min: float = -math.inf
    max: float = math.inf
    is_integer: bool = False
    rounding_factor: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check_bounds(self) -> _NumericSpace:
        low, high = self.limits()
        if not low < high:
            raise ValueError(
                f"min={self.min:g} and max={self.max:g} leave no room: min must be below max"
                + (f" by a multiple of {self.rounding_factor}" if self.is_integer else "")
            )
        if self.rounding_factor != 1 and not self.is_integer:
            raise ValueError("rounding_factor needs is_integer=True")
        return self

    @property
    def n_dims(self) -> int:
        return 1

    def limits(self) -> tuple[float, float]:
        """The least and the greatest value, with rounding."""
        if not self.is_integer:
            return self.min, self.max
        step = self.rounding_factor
        low = math.ceil(self.min / step) * step if math.isfinite(self.min) else self.min
        high = math.floor(self.max / step) * step if math.isfinite(self.max) else self.max
        return low, high

    def all_values(self, n_most: int) -> list[Value] | None:
        low, high = self.limits()
        step = self.rounding_factor
        if not self.is_integer or not (high - low) / step < n_most:
            return None
        return list(range(int(low), int(high) + 1, step))

    @abstractmethod
    def _warp(self, x: FloatArray) -> FloatArray: ...

    @abstractmethod
    def _unwarp(self, u: FloatArray) -> FloatArray: ...

    def _round(self, x: FloatArray) -> FloatArray:
        low, high = self.limits()
        if self.is_integer:
            x = np.round(x / self.rounding_factor) * self.rounding_factor
        return np.asarray(np.clip(x, low, high))

    def _value(self, z: FloatArray, center: Any) -> FloatArray:
        u = self._warp(np.asarray(float(center))) + self.scale * z
        return self._round(self._unwarp(u))

    def check(self, value: Any) -> Value:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
            raise ValueError(f"{value!r} is no number")
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{number} is not finite")
        low, high = self.min, self.max
        if not low <= number <= high:
            raise ValueError(f"{number:g} lies outside [{low:g}, {high:g}]")
        if self.is_integer:
            if number != round(number):
                raise ValueError(f"{number:g} is no whole number")
            return round(number)
        return number

    def encode_all(self, values: Sequence[Any], center: Any) -> FloatArray:
        u = self._warp(np.array([*values, center], dtype=float))
        return np.asarray((u[:-1, None] - u[-1]) / self.scale)

    def decode(self, z: FloatArray, center: Any) -> Value:
        x = float(self._value(np.asarray(z, dtype=float).reshape(1), center)[0])
        return round(x) if self.is_integer else x

    def snap(self, Z: FloatArray, center: Any) -> FloatArray:
        u_center = self._warp(np.asarray(float(center)))
        return np.asarray((self._warp(self._value(Z, center)) - u_center) / self.scale)


class LinearSpace(_NumericSpace):
    """Numbers on a linear scale.

    Args:
        scale: the step over which the parameter matters, in its own unit. By default a quarter of
            the range between the bounds, or one where a bound is missing.
        min, max: inclusive bounds; infinite by default.
        is_integer: whole numbers only.
        rounding_factor: whole multiples of this; needs ``is_integer``.
    """

    kind: Literal["linear"] = "linear"

    @model_validator(mode="after")
    def _default_scale(self) -> LinearSpace:
        if "scale" not in self.model_fields_set and math.isfinite(self.max - self.min):
            object.__setattr__(self, "scale", (self.max - self.min) / 4)
        return self

    def _warp(self, x: FloatArray) -> FloatArray:
        return x

    def _unwarp(self, u: FloatArray) -> FloatArray:
        return np.clip(u, -(10.0**_LARGEST_WARP), 10.0**_LARGEST_WARP)


class LogSpace(_NumericSpace):
    """Positive numbers on a logarithmic scale.

    Args:
        scale: the step over which the parameter matters, in decades (0.5: a factor of 3.2).
        min, max: inclusive bounds; every positive number by default.
        is_integer: whole numbers only.
        rounding_factor: whole multiples of this; needs ``is_integer``.
    """

    kind: Literal["log"] = "log"
    min: float = Field(default=0.0, ge=0)

    def limits(self) -> tuple[float, float]:
        low, high = super().limits()
        return (max(low, self.rounding_factor) if self.is_integer else low), high

    def check(self, value: Any) -> Value:
        checked = super().check(value)
        if float(checked) <= 0:  # type: ignore[arg-type]  # the parent returned a number
            raise ValueError(f"{value!r} is not positive, which a logarithmic scale needs")
        return checked

    def _warp(self, x: FloatArray) -> FloatArray:
        return np.asarray(np.log10(np.maximum(x, 10.0**-_LARGEST_WARP)))

    def _unwarp(self, u: FloatArray) -> FloatArray:
        return np.asarray(np.power(10.0, np.clip(u, -_LARGEST_WARP, _LARGEST_WARP)))


class LogitSpace(_NumericSpace):
    """Fractions strictly between 0 and 1, on the scale of their log odds.

    Args:
        scale: the step over which the parameter matters, in decades of the odds.
        min, max: inclusive bounds within (0, 1).
    """

    kind: Literal["logit"] = "logit"
    min: float = Field(default=0.0, ge=0, lt=1)
    max: float = Field(default=1.0, gt=0, le=1)
    is_integer: Literal[False] = False
    rounding_factor: Literal[1] = 1

    def check(self, value: Any) -> Value:
        checked = super().check(value)
        if not 0 < float(checked) < 1:  # type: ignore[arg-type]  # the parent returned a number
            raise ValueError(f"{value!r} does not lie strictly between 0 and 1")
        return checked

    def _warp(self, x: FloatArray) -> FloatArray:
        x = np.clip(x, 1e-15, 1 - 1e-15)
        return np.log10(x) - np.log10(1 - x)

    def _unwarp(self, u: FloatArray) -> FloatArray:
        u = np.clip(u, -15.0, 15.0)
        return np.asarray(1 / (1 + np.power(10.0, -u)))


class ChoiceSpace(_Space):
    """One of several values without an order.

    Args:
        choices: at least two distinct numbers, strings or booleans.
    """

    kind: Literal["choice"] = "choice"
    choices: tuple[Scalar, ...]

    def __init__(self, choices: Sequence[Scalar], **fields: Any) -> None:
        super().__init__(**{"choices": tuple(choices), **fields})

    @model_validator(mode="after")
    def _check_choices(self) -> ChoiceSpace:
        keys = [(type(choice), choice) for choice in self.choices]
        if len(keys) < 2 or len(set(keys)) != len(keys):
            raise ValueError(f"choices {list(self.choices)} must be two or more distinct values")
        return self

    @property
    def n_dims(self) -> int:
        return len(self.choices)

    def check(self, value: Any) -> Value:
        return self.choices[self.index(value)]

    def index(self, value: Any) -> int:
        """The place of a choice, or ``ValueError``."""
        for i, choice in enumerate(self.choices):
            if _is_same(choice, value):
                return i
        raise ValueError(f"{value!r} is none of {list(self.choices)}")

    def all_values(self, n_most: int) -> list[Value] | None:
        return list(self.choices) if len(self.choices) <= n_most else None

    def encode_all(self, values: Sequence[Any], center: Any) -> FloatArray:
        return np.asarray(np.eye(self.n_dims)[[self.index(value) for value in values]])

    def decode(self, z: FloatArray, center: Any) -> Value:
        return self.choices[int(np.argmax(z))]

    def snap(self, Z: FloatArray, center: Any) -> FloatArray:
        return np.asarray(np.eye(self.n_dims)[np.argmax(Z, axis=1)])


def _is_same(choice: Scalar, value: Any) -> bool:
    """Equal, where 1 is not True."""
    return bool(choice == value) and isinstance(choice, bool) == isinstance(value, bool)


class MixtureSpace(_Space):
    """Weights of several components that sum to one: a single parameter on the simplex.

    ``z_k = log10((w_k + offset) / (centre_k + offset)) / scale``; any real vector decodes, by
    normalisation, to a point of the simplex, and zero weights are ordinary points.

    Args:
        components: at least two distinct names.
        scale: the step over which a weight matters, in decades of its share.
        min, max: bounds of each component's weight: a number for all, or a mapping by name.
        offset: the share below which a component counts as absent.
    """

    kind: Literal["mixture"] = "mixture"
    components: tuple[str, ...]
    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    min: float | dict[str, float] = 0.0
    max: float | dict[str, float] = 1.0
    offset: float = Field(default=3e-3, gt=0, lt=1)

    def __init__(self, components: Sequence[str], **fields: Any) -> None:
        super().__init__(**{"components": tuple(components), **fields})

    @model_validator(mode="after")
    def _check_components(self) -> MixtureSpace:
        if len(self.components) < 2 or len(set(self.components)) != len(self.components):
            raise ValueError(
                f"components {list(self.components)} must be two or more distinct names"
            )
        for bound in (self.min, self.max):
            if isinstance(bound, dict) and not set(bound) <= set(self.components):
                unknown = sorted(set(bound) - set(self.components))
                raise ValueError(f"bounds name {unknown}, which are none of the components")
        low, high = self._bounds()
        if np.any(low < 0) or np.any(high > 1) or np.any(low > high):
            raise ValueError("every component needs 0 <= min <= max <= 1")
        if low.sum() > 1 or high.sum() < 1:
            raise ValueError(
                f"no weights within the bounds sum to one: the minima sum to {low.sum():g}, "
                f"the maxima to {high.sum():g}"
            )
        return self

    @property
    def n_dims(self) -> int:
        return len(self.components)

    def _bounds(self) -> tuple[FloatArray, FloatArray]:
        def each(bound: float | dict[str, float], default: float) -> FloatArray:
            if isinstance(bound, dict):
                return np.array([bound.get(name, default) for name in self.components])
            return np.full(len(self.components), float(bound))

        return each(self.min, 0.0), each(self.max, 1.0)

    def check(self, value: Any) -> Value:
        if not isinstance(value, Mapping) or set(value) != set(self.components):
            raise ValueError(f"{value!r} is no mapping with the components {list(self.components)}")
        for name, weight in value.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float, np.number)):
                raise ValueError(f"the weight {weight!r} of {name!r} is no number")
        weights = np.array([float(value[name]) for name in self.components])
        if not np.all(np.isfinite(weights)) or np.any(weights < 0):
            raise ValueError(f"weights {dict(value)} must be finite and not negative")
        if abs(weights.sum() - 1) > 1e-6:
            raise ValueError(f"weights {dict(value)} sum to {weights.sum():.6g}, expected 1")
        low, high = self._bounds()
        outside = (weights < low - 1e-6) | (weights > high + 1e-6)
        if np.any(outside):
            name = self.components[int(np.argmax(outside))]
            raise ValueError(f"the weight {value[name]:g} of {name!r} lies outside its bounds")
        return {name: float(value[name]) for name in self.components}

    def _log_center(self, center: Any) -> FloatArray:
        weights = np.array([center[name] for name in self.components])
        return np.asarray(np.log10(weights + self.offset))

    def _weights(self, Z: FloatArray, center: Any) -> FloatArray:
        """Points of the simplex within the bounds, shape ``(n, n_dims)``."""
        u = self._log_center(center) + self.scale * np.asarray(Z, dtype=float)
        u = u - u.max(axis=1, keepdims=True)
        shifted = np.power(10.0, np.clip(u, -_LARGEST_WARP, 0.0))
        shifted /= shifted.sum(axis=1, keepdims=True)
        weights = shifted * (1 + self.n_dims * self.offset) - self.offset
        low, high = self._bounds()
        return _onto_bounded_simplex(weights, low, high)

    def encode_all(self, values: Sequence[Any], center: Any) -> FloatArray:
        weights = np.array([[value[name] for name in self.components] for value in values])
        log_weights = np.log10(weights + self.offset)
        return np.asarray((log_weights - self._log_center(center)) / self.scale)

    def decode(self, z: FloatArray, center: Any) -> Value:
        weights = self._weights(np.asarray(z, dtype=float).reshape(1, -1), center)[0]
        return {name: float(w) for name, w in zip(self.components, weights, strict=True)}

    def snap(self, Z: FloatArray, center: Any) -> FloatArray:
        log_weights = np.log10(self._weights(Z, center) + self.offset)
        return np.asarray((log_weights - self._log_center(center)) / self.scale)


def _onto_bounded_simplex(weights: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """The rows ``clip(weights + t, low, high)`` with ``t`` such that each sums to one.

    This is the Euclidean projection onto the simplex with bounds. A row's sum rises with ``t``
    along straight lines between kinks, where a component meets a bound; ``t`` lies on one of them.
    """
    kinks = np.sort(np.concatenate([low - weights, high - weights], axis=1), axis=1)
    sums = np.clip(weights[:, None, :] + kinks[:, :, None], low, high).sum(axis=2)
    left = np.clip((sums <= 1).sum(axis=1, keepdims=True) - 1, 0, kinks.shape[1] - 2)
    t, t_right = (np.take_along_axis(kinks, i, axis=1) for i in (left, left + 1))
    total, total_right = (np.take_along_axis(sums, i, axis=1) for i in (left, left + 1))
    t += (1 - total) / np.maximum(total_right - total, 1e-300) * (t_right - t)
    return np.asarray(np.clip(weights + t, low, high))


Space = Annotated[
    LinearSpace | LogSpace | LogitSpace | ChoiceSpace | MixtureSpace, Field(discriminator="kind")
]


class Param(BaseModel):
    """A searched parameter: its name, its space, and where the search starts.

    Args:
        name: not empty, without dots (a dot separates a mixture from its component in a study).
        space: one of the spaces above.
        search_center: a good, cheap value; the first suggestion is made of these.
        when: the parameter exists only when each :class:`ChoiceSpace` parameter named here is
            active and has the value given, or one of those given:
            ``{"optimizer": ["sgd", "nesterov"]}``. By default it always exists.

    Raises:
        ValueError: the centre does not lie in the space.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, pattern=r"^[^.]*$")
    space: Space
    search_center: Any
    when: dict[str, Annotated[tuple[Scalar, ...], Field(min_length=1)]] = {}

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
            if isinstance(self.space, _NumericSpace) and self.space.is_integer:
                step = self.space.rounding_factor
                if int(center) % step:  # type: ignore[arg-type]  # checked to be a number
                    raise ValueError(f"{center} is no multiple of the rounding_factor {step}")
        except ValueError as error:
            raise ValueError(f"search_center of parameter {self.name!r}: {error}") from None
        object.__setattr__(self, "search_center", center)
        return self


class SearchSpace:
    """All parameters together: configurations to points of the basic space and back.

    Args:
        params: at least one parameter, with distinct names.
        constraints: what every suggestion meets, see :mod:`carbs.constraints`. Configurations that
            somebody else chose need not meet them: :meth:`check` does not look.

    Attributes:
        n_dims: the number of basic dimensions of all parameters.
        slices: for each parameter's name, its place among the basic dimensions.
        shares: of each basic dimension in its parameter, ``1 / n`` where that has n: ``(n_dims,)``.
        center: the basic point at which the search starts, shape ``(n_dims,)``.
        center_params: its configuration.

    Raises:
        ValueError: names occur twice, a ``when`` cannot be met, a constraint is no expression over
            the parameters, or the centre violates it.
    """

    def __init__(self, params: Sequence[Param], constraints: Iterable[Constraint] = ()) -> None:
        self.params = tuple(params)
        names = [param.name for param in self.params]
        if not names:
            raise ValueError("no parameters: a search needs at least one Param")
        if len(set(names)) != len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"parameter names must be distinct, but {twice} occur twice")
        sizes = [param.space.n_dims for param in self.params]
        ends = np.cumsum(sizes).tolist()
        self.n_dims: int = ends[-1]
        self.slices = {
            param.name: slice(end - param.space.n_dims, end)
            for param, end in zip(self.params, ends, strict=True)
        }
        self.shares = np.repeat(1 / np.array(sizes), sizes)
        values = [param.space.all_values(_LARGEST_GRID) for param in self.params]
        self._n_points = math.prod(math.inf if v is None else len(v) for v in values)
        self._conditions = _conditions(self.params)
        centers: Params = {param.name: param.search_center for param in self.params}
        active = self.active_names(centers)
        self.center_params = {name: value for name, value in centers.items() if name in active}
        self.center = np.concatenate(
            [param.space.encode(param.search_center, param.search_center) for param in self.params]
        )
        self.constraints = tuple(as_predicate(constraint, centers) for constraint in constraints)
        for constraint in self.constraints:
            if not constraint.holds(self.center_params):
                raise ValueError(
                    f"the search centre {self.center_params} violates the {constraint}: move a "
                    "search_center, or change the constraint"
                )

    def active_names(self, values: Mapping[str, Any]) -> set[str]:
        """The parameters that exist beside these values of the parameters that they depend on."""
        active: set[str] = set()
        for name, when in self._conditions.items():
            if all(
                parent in active and any(_is_same(choice, values.get(parent)) for choice in choices)
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
