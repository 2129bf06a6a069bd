"""What is printed, and what a notebook shows: readable, with nothing of the user's as HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from carbs import (
    CARBS,
    ChoiceSpace,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Param,
    SearchSpace,
)
from carbs.result import SearchResult

EVIL = "<script>alert('x')</script>"
PARAMS = [
    Param("width<b>", LogSpace(min=16, is_integer=True, rounding_factor=16), 64),
    Param("optimizer", ChoiceSpace(["adam", EVIL]), "adam"),
    Param("momentum", LogitSpace(), 0.9, when={"optimizer": EVIL}),
    Param("mix", MixtureSpace(["a", "<i>"]), {"a": 0.25, "<i>": 0.75}),
]


class Cells(HTMLParser):
    """The texts of a table; any tag but a table's own fails."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag in ("table", "caption", "thead", "tbody", "tr", "th", "td", "br")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize(
    "written",
    [
        "Param('rate', LogSpace(scale=0.5), search_center=0.003)",
        "Param('n', LinearSpace(min=1, max=9, is_integer=True), search_center=3, role='depth')",
        "Param('opt', ChoiceSpace(choices=['a', 1]), search_center=1)",
        "Param('b', LogitSpace(max=0.95), search_center=0.5, when={'opt': ['a', 1]})",
        "Param('b', LogitSpace(), search_center=0.5, when={'opt': 'a'})",
        "Param('m', MixtureSpace(components=['a', 'b'], max=0.9), "
        "search_center={'a': 0.5, 'b': 0.5})",
    ],
)
def test_a_parameter_is_printed_as_it_is_written(written: str) -> None:
    made = (Param, ChoiceSpace, LinearSpace, LogitSpace, LogSpace, MixtureSpace)
    param = eval(written, {kind.__name__: kind for kind in made})
    assert repr(param) == str(param) == written


def test_a_space_is_a_table_of_its_parameters() -> None:
    space = SearchSpace(PARAMS, ["momentum < 0.99"])
    assert repr(space).splitlines()[1] == f"  {PARAMS[0]!r}"
    assert "constraint 'momentum < 0.99'" in repr(space)
    texts = Cells(space._repr_html_()).texts
    assert {"width<b>", f"optimizer is {EVIL}", "a 0.25, <i> 0.75"} <= set(texts)
    assert "constraint 'momentum < 0.99'" in texts
    assert Cells(PARAMS[0]._repr_html_()).texts[4:6] == ["width<b>", repr(PARAMS[0].space)]
    assert CARBS(PARAMS)._repr_html_() == SearchSpace(PARAMS)._repr_html_()


def test_an_optimizer_says_where_it_is() -> None:
    optimizer = CARBS(PARAMS, max_cost=100, n_trials=9)
    for cost in (1.0, 2.0, 3.0):
        optimizer.observe(optimizer.suggest(), output=1 / cost, cost=cost)
    optimizer.observe_failure(optimizer.suggest(), reason="out of memory")
    suggestion = optimizer.suggest()
    text = repr(optimizer)
    assert "minimize over width<b>, optimizer, momentum, mix; max_cost 100; n_trials 9" in text
    assert "3 observed; 1 failed; 1 pending; best output 0.3333 at cost 3" in text
    assert text in Cells(optimizer._repr_html_()).texts

    assert repr(suggestion) == str(suggestion)
    assert repr(suggestion).startswith(f"Suggestion(4: width<b>={suggestion.params['width<b>']}, ")
    assert "predicted output 0." in repr(suggestion)
    texts = Cells(suggestion._repr_html_()).texts
    assert {"suggestion 4", "width<b>", "predicted cost", "success probability"} <= set(texts)

    assert repr(optimizer.observations[0]).startswith("Observation(output 1, cost 1; width<b>=64, ")
    assert str(optimizer.failures[0]).startswith("Failure('out of memory'; width<b>=")

    result = SearchResult(optimizer)
    lines = repr(result).splitlines()
    assert lines[0] == "SearchResult: 3 runs finished, 1 failed, cost spent 6"
    assert lines[1].startswith("  output 1  cost 1  width<b>=64, optimizer=adam, mix=(a 0.25, ")
    assert "3 runs finished, 1 failed, cost spent 6" in Cells(result._repr_html_()).texts
