"""The kinds of space that a parameter may have: numbers on three scales, choices, and mixtures.

Who asks of what kind a space is: :mod:`carbs.study`, :mod:`carbs.earlier` and, for curves, plans
and the report, :mod:`carbs.analysis`.


x       a value as the user writes it: a number, a category, a mapping of mixture weights
u       the warped value: x, log10 x, or log10 of the odds
z       the basic coordinates, shape ``(n_dims,)``; for a number ``z = (u(x) - u(centre)) / scale``
Z       many basic points, shape ``(n, n_dims)``

The centre lies at the origin and a distance of one is one ``scale``: the step over which the user
expects a parameter to matter. Every space can be left unbounded. Integers, rounding, bounds,
categories and the simplex are handled by ``snap``, which moves a basic point to the nearest one
that a configuration can have, so that a candidate is scored as what would really be run.

Mixture weights live in log-ratio coordinates (Aitchison 1986, "The Statistical Analysis of
Compositional Data", ch. 4) with an offset, so that a weight of zero is a point like any other.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

FloatArray = NDArray[np.float64]


Scalar = bool | int | float | str


Value = Scalar | dict[str, float]


Params = dict[str, Value]


_LARGEST_WARP = 300.0  # 10 ** 300 is still a float


LARGEST_GRID = 10_000

# Scales where none is given: a share of the range between two bounds, but at most so many decades;
# without two bounds, on a line, a share of the centre.
_OF_RANGE, _DECADES, _OF_CENTER = 0.25, 0.4, 0.3


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
    def columns(self, Z: FloatArray, center: Any) -> Any:
        """Values at points ``(n, n_dims)`` for arithmetic: an array ``(n,)``, numbers not rounded.

        Of a mixture, one for each component's name.
        """

    @abstractmethod
    def snap(self, Z: FloatArray, center: Any) -> FloatArray:
        """The nearest points that a value can have, shape ``(n, n_dims)`` in and out."""

    def all_values(self, n_most: int) -> list[Value] | None:
        """Every value, where there are at most ``n_most``; else None."""
        return None

    def around(self, center: Any) -> Self:
        """The same with what follows from the centre where it was not said."""
        return self

    def __repr__(self) -> str:
        """As it would be written: what has its default is left out."""
        fields = {name: field for name, field in type(self).model_fields.items() if name != "kind"}
        written = [
            f"{name}={_written(getattr(self, name))}"
            for name, field in fields.items()
            if name in self.model_fields_set and getattr(self, name) != field.default
        ]
        return f"{type(self).__name__}({', '.join(written)})"

    __str__ = __repr__


def _written(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    return repr(list(value) if isinstance(value, tuple) else value)


class NumericSpace(_Space):
    scale: float = Field(default=_DECADES, gt=0, allow_inf_nan=False)
    min: float = -math.inf
    max: float = math.inf
    is_integer: bool = False
    rounding_factor: int = Field(default=1, ge=1)
    _most_scale: ClassVar[float] = _DECADES

    @model_validator(mode="after")
    def _check_bounds(self) -> NumericSpace:
        low, high = self.limits()
        if not low < high:
            raise ValueError(
                f"min={self.min:g} and max={self.max:g} leave no room: min must be below max"
                + (f" by a multiple of {self.rounding_factor}" if self.is_integer else "")
            )
        if self.rounding_factor != 1 and not self.is_integer:
            raise ValueError("rounding_factor needs is_integer=True")
        return self

    @model_validator(mode="after")
    def _default_scale(self) -> NumericSpace:
        if "scale" not in self.model_fields_set:
            low, high = self._warp(np.array(self.limits()))
            if math.isfinite(high - low):
                default = _OF_RANGE * float(high - low)
                object.__setattr__(self, "scale", min(self._most_scale, default))
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

    def next_values(self, z_low: float, z_high: float, center: Any) -> tuple[float, float]:
        """The basic points of the whole numbers next to an interval; of others, the interval."""
        if not self._step:
            return z_low, z_high
        ends = self._value(np.array([z_low, z_high]), center) + self._step * np.array([-1, 1])
        low, high = self.encode_all(np.clip(ends, *self.limits()).tolist(), center)[:, 0].tolist()
        return low, high

    @property
    def _step(self) -> float:
        """From one value to the next; zero where there is none."""
        return float(self.rounding_factor) if self.is_integer else 0.0

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

    def _free(self, z: FloatArray, center: Any) -> FloatArray:
        return self._unwarp(self._warp(np.asarray(float(center))) + self.scale * z)

    def _value(self, z: FloatArray, center: Any) -> FloatArray:
        return self._round(self._free(z, center))

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

    def columns(self, Z: FloatArray, center: Any) -> Any:
        return np.clip(self._free(Z[:, 0], center), *self.limits())

    def snap(self, Z: FloatArray, center: Any) -> FloatArray:
        u_center = self._warp(np.asarray(float(center)))
        return np.asarray((self._warp(self._value(Z, center)) - u_center) / self.scale)


class LinearSpace(NumericSpace):
    """Numbers on a linear scale.

    Args:
        scale: the step over which the parameter matters, in its own unit. By default a quarter of
            the range between the bounds; where one is missing 0.3 of the search centre, or one
            around zero.
        min, max: inclusive bounds; infinite by default.
        is_integer: whole numbers only.
        rounding_factor: whole multiples of this; needs ``is_integer``.
    """

    kind: Literal["linear"] = "linear"

    scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    _most_scale: ClassVar[float] = math.inf

    def around(self, center: Any) -> Self:
        if "scale" in self.model_fields_set or math.isfinite(self.max - self.min):
            return self
        scale = _OF_CENTER * abs(center) or 1.0
        return self.model_copy(update={"scale": max(scale, 1.0) if self.is_integer else scale})

    def _warp(self, x: FloatArray) -> FloatArray:
        return x

    def _unwarp(self, u: FloatArray) -> FloatArray:
        return np.clip(u, -(10.0**_LARGEST_WARP), 10.0**_LARGEST_WARP)


class LogSpace(NumericSpace):
    """Positive numbers on a logarithmic scale.

    Args:
        scale: the step over which the parameter matters, in decades. By default 0.4, a factor of
            2.5, or a quarter of those between the bounds if that is less.
        min, max: inclusive bounds; every positive number by default.
        is_integer: whole numbers only.
        rounding_factor: whole multiples of this; needs ``is_integer``.
    """

    kind: Literal["log"] = "log"

    @model_validator(mode="before")
    @classmethod
    def _has_no_base(cls, fields: Any) -> Any:
        if isinstance(fields, Mapping) and "base" in fields:
            raise ValueError(
                "a LogSpace has no base: its scale is in decades; a scale in another base is "
                "scale * log10(base)"
            )
        return fields

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


class LogitSpace(NumericSpace):
    """Fractions strictly between 0 and 1, on the scale of their log odds.

    Args:
        scale: the step over which the parameter matters, in decades of the odds; by default as in
            a :class:`LogSpace`.
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
        choices: at least two distinct numbers, strings or booleans; NumPy's count as Python's.
    """

    kind: Literal["choice"] = "choice"
    choices: tuple[Scalar, ...]

    def __init__(self, choices: Sequence[Scalar], **fields: Any) -> None:
        plain = [choice.item() if isinstance(choice, np.generic) else choice for choice in choices]
        super().__init__(**{"choices": tuple(plain), **fields})

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
            if is_same(choice, value):
                return i
        raise ValueError(f"{value!r} is none of {list(self.choices)}")

    def all_values(self, n_most: int) -> list[Value] | None:
        return list(self.choices) if len(self.choices) <= n_most else None

    def encode_all(self, values: Sequence[Any], center: Any) -> FloatArray:
        return np.asarray(np.eye(self.n_dims)[[self.index(value) for value in values]])

    def decode(self, z: FloatArray, center: Any) -> Value:
        return self.choices[int(np.argmax(z))]

    def columns(self, Z: FloatArray, center: Any) -> Any:
        return np.array(self.choices)[np.argmax(Z, axis=1)]

    def snap(self, Z: FloatArray, center: Any) -> FloatArray:
        return np.asarray(np.eye(self.n_dims)[np.argmax(Z, axis=1)])


def is_same(choice: Scalar, value: Any) -> bool:
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

    def columns(self, Z: FloatArray, center: Any) -> Any:
        return dict(zip(self.components, self._weights(Z, center).T, strict=True))

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
