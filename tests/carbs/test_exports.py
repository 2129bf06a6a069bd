"""What a user imports from carbs."""

from __future__ import annotations

import carbs
from carbs import analysis


def test_exactly_the_promised_names_are_public() -> None:
    promised = {
        "CARBS",
        "ChoiceSpace",
        "EarlierSweep",
        "Failure",
        "FunctionFailsError",
        "LinearSpace",
        "LogSpace",
        "LogitSpace",
        "MixtureSpace",
        "Observation",
        "Param",
        "SearchResult",
        "Suggestion",
        "minimize",
    }
    assert promised <= set(carbs.__all__)
    assert len(set(carbs.__all__)) == len(carbs.__all__)


def test_every_name_is_there_when_it_is_asked_for() -> None:
    for package in (carbs, analysis):
        assert set(package.__all__) <= set(dir(package))
        for name in package.__all__:
            assert getattr(package, name) is not None
