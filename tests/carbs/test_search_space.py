"""Every space: values to basic points and back, and errors that name the parameter."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from carbs import ChoiceSpace, LinearSpace, LogitSpace, LogSpace, MixtureSpace, Param, SearchSpace
from carbs.spaces import NumericSpace, Space

KINDS = ["linear", "log", "logit", "integer", "log-integer", "choice", "mixture"]
SCALES = st.floats(0.05, 2.0)
CHOICES: list[Any] = [0, 7, -3, 2.5, "a", "b", "", True]


@st.composite
def spaces(draw: st.DrawFn, kind: str) -> Space:
    if kind == "choice":
        return ChoiceSpace(draw(st.lists(st.sampled_from(CHOICES), min_size=2, unique=True)))
    scale = draw(SCALES)
    match kind:
        case "linear":
            low, high = draw(st.floats(-1e3, 0)), draw(st.floats(0.1, 1e3))
            return LinearSpace(scale=scale, **draw(some(min=low, max=high)))
        case "log":
            low, high = 10 ** draw(st.floats(-6, 0)), 10 ** draw(st.floats(0.1, 6))
            return LogSpace(scale=scale, **draw(some(min=low, max=high)))
        case "logit":
            low, high = draw(st.floats(1e-4, 0.4)), draw(st.floats(0.5, 0.999))
            return LogitSpace(scale=scale, **draw(some(min=low, max=high)))
        case "integer" | "log-integer":
            step = draw(st.sampled_from([1, 2, 16]))
            first, n_steps = draw(st.integers(1, 50)), draw(st.integers(2, 200))
            # Bounds that are themselves no multiples of the step.
            low, high = (first - 0.5) * step, (first + n_steps + 0.5) * step
            bounds = draw(some(min=low, max=high))
            space = LogSpace if kind == "log-integer" else LinearSpace
            return space(scale=scale, is_integer=True, rounding_factor=step, **bounds)
    names = [f"part {i}" for i in range(draw(st.integers(2, 6)))]
    middle = np.array(draw(st.lists(st.integers(0, 9), min_size=len(names), max_size=len(names))))
    middle = (middle + 1e-9) / (middle + 1e-9).sum()
    tightness = draw(st.sampled_from([0.0, 0.0, 0.5, 0.9]))
    low, high = tightness * middle, tightness * middle + (1 - tightness)
    return MixtureSpace(
        names,
        scale=scale,
        min={name: float(value) for name, value in zip(names, low, strict=True)},
        max={name: float(value) for name, value in zip(names, high, strict=True)},
        offset=draw(st.sampled_from([1e-4, 3e-3, 0.1])),
    )


@st.composite
def some(draw: st.DrawFn, **bounds: float) -> dict[str, float]:
    """Either bound may be left out."""
    return {name: value for name, value in bounds.items() if draw(st.booleans())}


@st.composite
def values(draw: st.DrawFn, space: Space) -> Any:
    match space:
        case ChoiceSpace():
            return draw(st.sampled_from(space.choices))
        case MixtureSpace():
            return draw(mixtures(space))
        case LogitSpace():
            odds = 10 ** draw(st.floats(-6, 6))
            return float(np.clip(odds / (1 + odds), space.min, space.max))
    low, high = space.limits()
    if space.is_integer:
        step = space.rounding_factor
        low, high = max(low, -(10**6)), min(high, 10**6)
        return step * draw(st.integers(math.ceil(low / step), math.floor(high / step)))
    if isinstance(space, LogSpace):
        return float(np.clip(10 ** draw(st.floats(-9, 9)), low, high))
    return draw(st.floats(max(low, -1e6), min(high, 1e6)))


@st.composite
def mixtures(draw: st.DrawFn, space: MixtureSpace) -> dict[str, float]:
    assert isinstance(space.min, dict) and isinstance(space.max, dict)
    weights = {name: space.min[name] for name in space.components}
    # What is left is handed out in random order, as much as fits or less: zeros are common.
    order = draw(st.permutations(space.components))
    for shares in ([draw(st.floats(0, 1)) for _ in order], [1.0] * len(order)):
        for name, share in zip(order, shares, strict=True):
            left = 1 - sum(weights.values())
            weights[name] += min(share * left, space.max[name] - weights[name])
    return weights


@st.composite
def params(draw: st.DrawFn, kind: str) -> Param:
    space = draw(spaces(kind))
    return Param("p", space, draw(values(space)))


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a == pytest.approx(b, abs=1e-9)
    elif isinstance(a, float) and isinstance(b, float):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-9)
    else:
        assert a == b
        assert type(a) is type(b)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_value_comes_back_from_the_basic_space(kind: str, data: st.DataObject) -> None:
    param = data.draw(params(kind))
    value = data.draw(values(param.space))
    z = param.space.encode(value, param.search_center)
    assert z.shape == (param.space.n_dims,)
    assert_same(param.space.decode(z, param.search_center), value)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_any_real_vector_decodes_to_a_configuration(kind: str, data: st.DataObject) -> None:
    space = SearchSpace([data.draw(params(kind)), Param("other", LogSpace(), 1.0)])
    z = data.draw(st.lists(st.floats(-1e6, 1e6), min_size=space.n_dims, max_size=space.n_dims))
    decoded = space.decode(np.array(z))
    assert space.check(decoded) == decoded
    if kind == "mixture":
        assert isinstance(decoded["p"], dict)
        assert sum(decoded["p"].values()) == pytest.approx(1, abs=1e-9)
    if "integer" in kind:
        numeric = space.params[0].space
        assert isinstance(numeric, LinearSpace | LogSpace) and isinstance(decoded["p"], int)
        assert decoded["p"] % numeric.rounding_factor == 0


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_snapped_points_are_configurations(kind: str, data: st.DataObject) -> None:
    space = SearchSpace([data.draw(params(kind)), Param("other", LinearSpace(), 1.0)])
    rows = st.lists(st.floats(-5, 5), min_size=space.n_dims, max_size=space.n_dims)
    Z = np.array(data.draw(st.lists(rows, min_size=1, max_size=4)))
    snapped = space.snap(Z)
    np.testing.assert_allclose(space.snap(snapped), snapped, rtol=1e-6, atol=1e-6)
    for row in snapped:
        values = space.check(space.decode(row))
        np.testing.assert_allclose(space.encode(values), row, rtol=1e-6, atol=1e-6)


@given(data=st.data())
def test_what_a_configuration_has_is_left_where_it_is_by_snap(data: st.DataObject) -> None:
    kinds = data.draw(st.permutations(KINDS))
    several = [data.draw(params(kind)) for kind in kinds]
    space = SearchSpace([Param(f"p{i}", p.space, p.search_center) for i, p in enumerate(several)])
    values_ = {p.name: data.draw(values(p.space)) for p in space.params}
    z = space.encode(values_)
    np.testing.assert_allclose(space.snap(z[None, :])[0], z, rtol=1e-6, atol=1e-6)
    assert set(space.decode(z)) == set(values_)
    for name, value in space.decode(z).items():
        assert_same(value, values_[name])


def test_a_scale_is_one_unit_of_distance() -> None:
    space = SearchSpace(
        [
            Param("linear", LinearSpace(scale=5), 10.0),
            Param("log", LogSpace(scale=0.5), 1e-3),
            Param("logit", LogitSpace(scale=1), 0.5),
        ]
    )
    assert space.center.tolist() == [0, 0, 0]
    z = space.encode({"linear": 15, "log": 1e-2, "logit": 10 / 11})
    assert z.tolist() == pytest.approx([1, 2, 1])


@pytest.mark.parametrize(
    ("space", "center", "scale"),
    [
        (LogSpace(), 1e-3, 0.4),
        (LogSpace(min=1, max=1e4), 10, 0.4),
        (LogSpace(min=1, max=10), 2, 0.25),
        (LogSpace(min=1, max=10, scale=2), 2, 2),
        (LogitSpace(), 0.5, 0.4),
        (LinearSpace(min=-1, max=1), 0.5, 0.5),
        (LinearSpace(), -300.0, 90),
        (LinearSpace(min=0), 300.0, 90),
        (LinearSpace(is_integer=True), 2, 1),
        (LinearSpace(), 0.0, 1),
        (LinearSpace(scale=1), 300.0, 1),
    ],
)
def test_a_scale_that_is_not_given(space: NumericSpace, center: float, scale: float) -> None:
    param = Param("x", space, center)
    assert param.space.scale == pytest.approx(scale)
    assert Param.model_validate(param.model_dump()) == param


def test_snap_picks_the_nearest() -> None:
    space = LinearSpace(min=-7, max=30, scale=1, is_integer=True, rounding_factor=4)
    Z = np.array([[-100.0], [1.9], [2.1], [27.0], [100.0]])
    assert space.snap(Z, 0).ravel().tolist() == [-4, 0, 4, 28, 28]


def test_mixture_bounds_hold_for_each_component() -> None:
    space = MixtureSpace(["a", "b", "c"], min={"a": 0.3}, max={"b": 0.1})
    center = {"a": 0.4, "b": 0.0, "c": 0.6}
    for z in np.random.default_rng(0).normal(scale=3, size=(200, 3)):
        weights = space.decode(z, center)
        assert isinstance(weights, dict)
        assert sum(weights.values()) == pytest.approx(1, abs=1e-9)
        assert weights["a"] >= 0.3 - 1e-9
        assert weights["b"] <= 0.1 + 1e-9
    assert space.decode(np.array([-9.0, 9.0, -9.0]), center)["b"] == pytest.approx(0.1)  # type: ignore[index]


def test_true_and_one_are_different_choices() -> None:
    space = ChoiceSpace([1, True])
    assert space.decode(space.encode(True, 1), 1) is True


def test_choices_of_an_array_keep_their_kind() -> None:
    assert repr(ChoiceSpace(np.array([16, 32])).choices) == "(16, 32)"
    assert ChoiceSpace(np.array(["a", "b"])).choices == ("a", "b")
    assert ChoiceSpace([np.bool_(True), np.int64(1)]).choices == (True, 1)


def test_many_components_with_a_large_offset_still_sum_to_one() -> None:
    names = [f"part {i}" for i in range(30)]
    space = MixtureSpace(names, offset=0.5)
    center = dict.fromkeys(names, 1 / 30)
    weights = space.decode(np.array([20.0] * 3 + [0.0] * 27), center)
    assert isinstance(weights, dict)
    assert sum(weights.values()) == pytest.approx(1, abs=1e-9)


def a_value_of(space: Space) -> Any:
    match space:
        case ChoiceSpace():
            return space.choices[0]
        case MixtureSpace():
            return dict.fromkeys(space.components, 1 / len(space.components))
    return 0.5 if isinstance(space, LogitSpace) else 1


@pytest.mark.parametrize(
    ("space", "center", "said"),
    [
        (LinearSpace(min=0, max=1), 2, "2 lies outside [0, 1]"),
        (LinearSpace(), True, "True is no number"),
        (LinearSpace(), "3", "'3' is no number"),
        (LinearSpace(), math.nan, "not finite"),
        (LinearSpace(), math.inf, "not finite"),
        (LinearSpace(is_integer=True), 1.5, "1.5 is no whole number"),
        (LogSpace(), 0, "not positive"),
        (LogSpace(), -1, "outside"),
        (LogitSpace(), 1, "strictly between 0 and 1"),
        (ChoiceSpace(["adam", "sgd"]), "adan", "'adan' is none of ['adam', 'sgd']"),
        (ChoiceSpace([0, 1]), True, "True is none of [0, 1]"),
        (MixtureSpace(["a", "b"]), {"a": 0.5, "b": 0.4}, "sum to 0.9, expected 1"),
        (MixtureSpace(["a", "b"]), {"a": 0.5, "c": 0.5}, "the components ['a', 'b']"),
        (MixtureSpace(["a", "b"]), {"a": 1.0}, "the components ['a', 'b']"),
        (MixtureSpace(["a", "b"]), 0.5, "the components ['a', 'b']"),
        (MixtureSpace(["a", "b"]), {"a": 1.5, "b": -0.5}, "not negative"),
        (MixtureSpace(["a", "b"]), {"a": math.nan, "b": 1}, "finite"),
        (MixtureSpace(["a", "b"], max=0.7), {"a": 0.8, "b": 0.2}, "0.8 of 'a'"),
        (MixtureSpace(["a", "b"]), {"a": "half", "b": 0.5}, "half"),
        (MixtureSpace(["a", "b"]), {"a": None, "b": 1.0}, "None"),
    ],
)
def test_an_impossible_value_is_refused_by_name(space: Any, center: Any, said: str) -> None:
    with pytest.raises(ValueError, match="parameter 'rate'") as refusal:
        Param("rate", space, center)
    assert said in str(refusal.value)
    # The same in a configuration.
    search_space = SearchSpace([Param("rate", space, a_value_of(space))])
    with pytest.raises(ValueError, match="parameter 'rate'") as refusal:
        search_space.check({"rate": center})
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LinearSpace(min=2, max=1), "min=2 and max=1 leave no room"),
        (lambda: LinearSpace(min=1, max=9, is_integer=True, rounding_factor=8), "multiple of 8"),
        (lambda: LinearSpace(rounding_factor=2), "needs is_integer"),
        (lambda: LinearSpace(scale=0), "scale"),
        (lambda: LinearSpace(step=1), "step"),
        (lambda: ChoiceSpace(["a"]), "two or more distinct"),
        (lambda: ChoiceSpace(["a", "a"]), "two or more distinct"),
        (lambda: MixtureSpace(["a"]), "two or more distinct"),
        (lambda: MixtureSpace(["a", "b"], min=0.6), "the minima sum to 1.2"),
        (lambda: MixtureSpace(["a", "b"], max=0.4), "the maxima to 0.8"),
        (lambda: MixtureSpace(["a", "b"], min={"c": 0.1}), "['c']"),
        (lambda: Param("", LinearSpace(), 0), "name"),
    ],
)
def test_an_impossible_space_is_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError) as refusal:  # the message is compared below
        make()
    assert said in str(refusal.value)


def test_a_configuration_names_each_parameter_once() -> None:
    space = SearchSpace([Param("width", LogSpace(), 8.0), Param("depth", LogSpace(), 2.0)])
    with pytest.raises(ValueError, match=r"missing: \['depth'\]; unknown: \['dept'\]"):
        space.check({"width": 8.0, "dept": 2.0})
    with pytest.raises(ValueError, match=r"\['width'\] occur twice"):
        SearchSpace([space.params[0], space.params[1], space.params[0]])
    with pytest.raises(ValueError, match="at least one Param"):
        SearchSpace([])
    mix = Param("data.mix", MixtureSpace(["code", "prose"]), {"code": 0.5, "prose": 0.5})
    with pytest.raises(ValueError, match=r"'data.mix.heat' reads as a component of .* 'data.mix'"):
        SearchSpace([mix, Param("data.mix.heat", LogSpace(), 1.0)])
    optimizer = Param("optimizer", ChoiceSpace(["sgd", "adamw"]), "sgd")
    SearchSpace([mix, Param("data.heat", LogSpace(), 1.0), optimizer])
    SearchSpace([optimizer, Param("optimizer.lr", LogSpace(), 1.0)])


def test_a_centre_that_rounding_would_move_is_refused() -> None:
    space = LogSpace(min=16, is_integer=True, rounding_factor=16)
    with pytest.raises(ValueError, match=r"'width'.*50 is no multiple of the rounding_factor 16"):
        Param("width", space, 50)
    assert Param("width", space, 48).search_center == 48


@st.composite
def conditional_spaces(draw: st.DrawFn) -> SearchSpace:
    """Choices that depend on earlier ones, and numbers and mixtures that depend on any of them."""
    choices: list[Param] = []
    for i in range(draw(st.integers(1, 3))):
        space = draw(spaces("choice"))
        when = draw(conditions(choices))
        choices.append(Param(f"choice {i}", space, draw(values(space)), when))
    others = [
        Param(f"p{i}", p.space, p.search_center, draw(conditions(choices)))
        for i, p in enumerate(draw(st.lists(st.sampled_from(KINDS).flatmap(params), max_size=3)))
    ]
    return SearchSpace(draw(st.permutations([*choices, *others])))


@st.composite
def conditions(draw: st.DrawFn, parents: list[Param]) -> dict[str, Any]:
    when: dict[str, Any] = {}
    for parent in draw(st.lists(st.sampled_from(parents), unique_by=id)) if parents else []:
        assert isinstance(parent.space, ChoiceSpace)
        choice = st.sampled_from(parent.space.choices)
        when[parent.name] = draw(st.one_of(choice, st.lists(choice, min_size=1, unique=True)))
    return when


def should_be_active(space: SearchSpace, values: dict[str, Any]) -> set[str]:
    """By the definition, from the present values alone."""
    by_name = {param.name: param for param in space.params}

    def is_active(name: str) -> bool:
        return all(
            is_active(parent)
            and any(type(c) is type(values[parent]) and c == values[parent] for c in choices)
            for parent, choices in by_name[name].when.items()
        )

    return {name for name in by_name if is_active(name)}


@given(data=st.data())
def test_conditional_configurations_come_back_from_the_basic_space(data: st.DataObject) -> None:
    space = data.draw(conditional_spaces())
    rows = st.lists(st.floats(-5, 5), min_size=space.n_dims, max_size=space.n_dims)
    Z = np.array(data.draw(st.lists(rows, min_size=1, max_size=4)))
    snapped = space.snap(Z)
    np.testing.assert_allclose(space.snap(snapped), snapped, rtol=1e-6, atol=1e-6)
    for row in snapped:
        decoded = space.decode(row)
        assert set(decoded) == should_be_active(space, decoded)
        assert space.check(decoded) == decoded
        np.testing.assert_allclose(space.encode(decoded), row, rtol=1e-6, atol=1e-6)
        for param in space.params:
            if param.name not in decoded:
                own = space.slices[param.name]
                assert row[own].tolist() == space.center[own].tolist()


@given(data=st.data())
def test_a_conditional_parameter_survives_json(data: st.DataObject) -> None:
    for param in data.draw(conditional_spaces()).params:
        text = json.dumps(param.model_dump(mode="json"))
        assert Param.model_validate_json(text) == param


OPTIMIZER = Param("optimizer", ChoiceSpace(["adamw", "sgd", "nesterov"]), "adamw")
MOMENTUM = Param("momentum", LogitSpace(), 0.9, when={"optimizer": ["sgd", "nesterov"]})
RESTART = Param("restart", ChoiceSpace([False, True]), False, when={"optimizer": "nesterov"})
PERIOD = Param("period", LogSpace(), 10.0, when={"restart": True, "optimizer": "nesterov"})
TRAINER = SearchSpace([PERIOD, MOMENTUM, OPTIMIZER, RESTART])  # children may stand first


def test_an_inactive_parameter_is_absent_and_stays_at_the_centre() -> None:
    assert TRAINER.center_params == {"optimizer": "adamw"}
    assert TRAINER.decode(TRAINER.center) == {"optimizer": "adamw"}
    sgd = TRAINER.encode({"momentum": 0.99, "optimizer": "sgd"})
    assert TRAINER.decode(sgd) == {"momentum": pytest.approx(0.99), "optimizer": "sgd"}
    adamw = sgd.copy()
    adamw[TRAINER.slices["optimizer"]] = [1, 0, 0]
    np.testing.assert_array_equal(TRAINER.snap(adamw[None, :])[0], TRAINER.center)
    assert TRAINER.decode(adamw) == {"optimizer": "adamw"}


def test_a_child_of_an_inactive_parameter_is_inactive() -> None:
    nesterov = {"optimizer": "nesterov", "momentum": 0.9, "restart": True, "period": 3.0}
    assert TRAINER.check(nesterov) == nesterov
    # At a centre that would otherwise activate it.
    restarting = Param("restart", RESTART.space, True, RESTART.when)
    period = Param("period", LogSpace(), 10.0, when={"restart": True})
    space = SearchSpace([OPTIMIZER, restarting, period])
    assert space.center_params == {"optimizer": "adamw"}


@pytest.mark.parametrize(
    ("values_", "said"),
    [
        (
            {"optimizer": "adamw", "momentum": 0.9},
            "'momentum' is inactive and must not be given: it exists only when 'optimizer' is one "
            "of ['sgd', 'nesterov'], and here it is 'adamw'",
        ),
        ({"optimizer": "sgd"}, "missing: ['momentum']"),
        ({"optimizer": "sgd"}, "'restart' is inactive: it exists only when 'optimizer'"),
        ({"optimizer": "sgd", "momentum": 0.9, "x": 1}, "unknown: ['x']"),
        ({"momentum": 0.9}, "missing: ['optimizer']"),
        (
            {"optimizer": "sgd", "momentum": 0.9, "period": 3.0},
            "'restart' is one of [True], and here it is absent",
        ),
    ],
)
def test_a_misfit_says_what_is_inactive_and_why(values_: Any, said: str) -> None:
    with pytest.raises(ValueError) as refusal:  # the message is compared below
        TRAINER.check(values_)
    assert said in str(refusal.value)


def test_a_condition_on_true_is_not_met_by_one() -> None:
    flag = Param("flag", ChoiceSpace([1, True]), 1)
    space = SearchSpace([flag, Param("x", LinearSpace(), 0.0, when={"flag": True})])
    assert space.check({"flag": 1}) == {"flag": 1}
    assert space.check({"flag": True, "x": 2.0}) == {"flag": True, "x": 2.0}
    assert space.active_rows(space.snap(np.array([[1.0, 0, 5], [0, 1, 5]])))["x"].tolist() == [
        False,
        True,
    ]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: SearchSpace([OPTIMIZER, Param("m", LogSpace(), 1, when={"optimiser": "sgd"})]),
            ["'m'", "'optimiser'", "none of the parameters ['m', 'optimizer']"],
        ),
        (
            lambda: SearchSpace([Param("a", LogSpace(), 1), Param("m", LogSpace(), 1, {"a": 1})]),
            ["'m'", "'a', which must be a choice"],
        ),
        (
            lambda: SearchSpace([OPTIMIZER, Param("m", LogSpace(), 1, {"optimizer": "sdg"})]),
            ["'m'", "optimizer = 'sdg' is none of ['adamw', 'sgd', 'nesterov']"],
        ),
        (
            lambda: SearchSpace(
                [
                    Param("a", ChoiceSpace([1, 2]), 1, when={"b": 1}),
                    Param("b", ChoiceSpace([1, 2]), 1, when={"a": 1}),
                ]
            ),
            ["depends on itself", "'a' -> 'b' -> 'a'"],
        ),
        (
            lambda: SearchSpace([Param("a", ChoiceSpace([1, 2]), 1, when={"a": 1})]),
            ["'a'", "depends on itself"],
        ),
        (lambda: Param("m", LogSpace(), 1, when={"optimizer": []}), ["when.optimizer", "least 1"]),
    ],
)
def test_an_impossible_condition_is_refused(make: Any, said: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:  # the message is compared below
        make()
    for words in said:
        assert words in str(refusal.value)
