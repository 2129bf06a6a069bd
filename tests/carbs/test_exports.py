"""What a user imports from carbs."""

from __future__ import annotations

import types

import carbs


def test_exactly_the_promised_names_are_public() -> None:
    promised = {
        "CARBS",
        "ChoiceSpace",
        "EarlierSweep",
        "Failure",
        "LinearSpace",
        "LogSpace",
        "LogitSpace",
        "MixtureSpace",
        "Observation",
        "Param",
        "Suggestion",
    }
    assert promised <= set(carbs.__all__)
    assert len(set(carbs.__all__)) == len(carbs.__all__)


def test_all_lists_what_the_package_defines_and_nothing_else() -> None:
    public = {
        name
        for name, thing in vars(carbs).items()
        if not name.startswith("_") and not isinstance(thing, types.ModuleType)
    }
    assert public == set(carbs.__all__)
