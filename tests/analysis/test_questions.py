"""Doubtful questions, found by the models that were asked them."""

from __future__ import annotations

import numpy as np
import pytest

from carbs.analysis import question_evidence

N_MODELS, N_QUESTIONS = 60, 200


def asked(seed: int, slopes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Models of growing skill; a question's nll falls with it by its slope, with noise."""
    rng = np.random.default_rng(seed)
    skill = rng.uniform(size=(N_MODELS, 1))
    nll = 3 + rng.normal(size=len(slopes)) - slopes * skill
    nll += 0.2 * rng.normal(size=nll.shape)
    right = rng.integers(4, size=len(slopes))
    chosen = np.where(rng.uniform(size=nll.shape) < 0.3 + skill / 2, right, rng.integers(4))
    return nll, chosen, right


def test_a_planted_mislabelled_question_is_the_one_that_is_found() -> None:
    slopes = np.random.default_rng(0).uniform(0, 2, size=N_QUESTIONS)
    slopes[[17, 90]] = -0.7
    nll, chosen, right = asked(1, slopes)
    chosen[:, 17] = (right[17] + 1) % 4  # the answer that it should have been
    chosen[:, 90] = np.arange(N_MODELS) % 4  # whichever
    found = question_evidence(nll, chosen, right)
    doubtful = found[found["verdict"] != ""]
    assert list(doubtful["question"]) == [17, 90]
    assert list(doubtful["verdict"]) == ["mislabelled", "ambiguous"]
    assert (doubtful["correlation"] < -0.5).all()
    assert (doubtful["p_value"] < 0.01).all()
    assert doubtful["preferred"].iloc[0] == (right[17] + 1) % 4
    assert doubtful["share"].iloc[0] == 1


def test_an_answer_that_got_likelier_before_it_got_less_likely_is_found() -> None:
    """As one that is marked wrongly does, when models first learn to write at all."""
    nll, chosen, right = asked(0, np.ones(N_QUESTIONS))
    others = nll[:, 1:].mean(axis=1)
    nll[:, 0] = 3 + np.abs(others - np.median(others))
    found = question_evidence(nll, chosen, right)
    assert list(found["question"][found["verdict"] != ""]) == [0]
    worse_half = others > np.median(others)
    found = question_evidence(nll[worse_half], chosen[worse_half], right)
    assert not (found["verdict"] != "").any()


def test_questions_that_say_nothing_are_rarely_called_doubtful() -> None:
    """Half of them are pure noise. At most one set in twenty is to have a false alarm."""
    slopes = np.where(np.arange(N_QUESTIONS) % 2, 1.0, 0.0)
    alarms = sum(
        (question_evidence(*asked(seed, slopes))["verdict"] != "").any() for seed in range(100)
    )
    assert alarms <= 10


def test_no_single_question_decides_which_model_is_good() -> None:
    """One that varies far more than all others would make the models' order its own."""
    slopes = np.ones(20)
    slopes[3] = -100
    nll, chosen, right = asked(0, slopes)
    found = question_evidence(nll, chosen, right)
    assert list(found["question"][found["verdict"] != ""]) == [3]


def test_too_few_models_are_an_error() -> None:
    nll, chosen, right = asked(0, np.ones(20))
    with pytest.raises(ValueError, match="15 models and 20 questions are too few"):
        question_evidence(nll[:15], chosen[:15], right)
    with pytest.raises(ValueError, match="models x questions"):
        question_evidence(nll, chosen.T, right)
