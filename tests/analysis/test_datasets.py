"""The runs that come along: what they hold, and where they come from."""

from __future__ import annotations

import re

import numpy as np
import pytest

from carbs.analysis import datasets


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_every_one_is_runs_with_a_source_and_a_licence(name: str) -> None:
    runs = datasets.load(name)
    assert len(runs) > 50 and not runs.columns.duplicated().any()
    text = datasets.licence(name)
    assert text.startswith(f"{name}.csv: ")
    assert "Permission is hereby granted" in text or "Apache License" in text
    assert re.search(r"https://github.com/\S+|this project", text)


def test_their_units_are_those_that_are_promised() -> None:
    porian = datasets.load("porian")
    standard = porian[porian["param_count"] == "standard"]
    ratio = standard["flops"] / (6 * standard["n_params"] * standard["n_tokens"])
    assert ratio.between(0.9, 1.1).mean() > 0.95
    weights = datasets.load("regmix").filter(regex="^w_")
    assert np.allclose(weights.sum(axis=1), 1, atol=0.02) and weights.shape == (512, 17)
    repeated = datasets.load("muennighoff")
    assert (repeated["unique_tokens"] <= repeated["n_tokens"]).all()
    ours = datasets.load("small_lm_mixtures")
    assert np.allclose(ours.filter(regex="^w_").sum(axis=1), 1)
    assert ours.filter(regex="^loss_").shape[1] == 8 and ours.groupby("n_params").ngroups == 3


def test_an_unknown_one_is_named_beside_those_that_are_there() -> None:
    with pytest.raises(ValueError, match="no data set 'chinchilla': there are porian, regmix"):
        datasets.load("chinchilla")
