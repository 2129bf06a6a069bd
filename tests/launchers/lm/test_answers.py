"""Answer perplexity: against computations by hand, and at the boundary of prompt and answer."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from carbs.launchers.lm.answers import Question, evaluate, load_questions, save_questions
from carbs.launchers.lm.model import ModelConfig, Transformer

QUESTIONS = [
    Question(prompt="a = 3\nprint(a)  # ", choices=["3\n", "4\n", "12\n"], answer=0),
    Question(prompt="", choices=["one", " one", "one ", "Ünë"], answer=3),
    Question(prompt="The cat sat on the ", choices=["mat.", "idea of it."], answer=0),
]


def build(seed: int = 0) -> Transformer:
    model = Transformer(ModelConfig(32, 2), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        model.unembedding.mul_(20)  # so that the choices differ
    return model


def log_likelihood(model: Transformer, prompt: str, choice: str) -> float:
    """By hand: the whole text as one plain sequence, summed over the choice's bytes."""
    start, answer = list(b"\0" + prompt.encode()), list(choice.encode())
    with torch.no_grad():
        log_p = model(torch.tensor([start + answer])).log_softmax(-1)[0]
    return sum(log_p[len(start) - 1 + i, byte].item() for i, byte in enumerate(answer))


@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_scores_are_those_of_each_choice_read_by_itself(tokens_per_batch: int) -> None:
    model = build()
    nll, right, likelihood = 0.0, 0, 0.0
    for question in QUESTIONS:
        scores = [log_likelihood(model, question.prompt, choice) for choice in question.choices]
        sizes = [len(choice.encode()) for choice in question.choices]
        per_byte = [score / size for score, size in zip(scores, sizes, strict=True)]
        nll -= per_byte[question.answer]
        right += per_byte.index(max(per_byte)) == question.answer
        likelihood += math.exp(scores[question.answer]) / sum(map(math.exp, scores))
    evaluation = evaluate(model, QUESTIONS, tokens_per_batch)
    assert evaluation.nll_per_byte == pytest.approx(nll / 3, rel=1e-5)
    assert evaluation.accuracy == pytest.approx(right / 3)
    assert evaluation.choice_likelihood == pytest.approx(likelihood / 3, rel=1e-4)
    assert evaluation.perplexity == pytest.approx(math.exp(nll / 3), rel=1e-5)
    assert evaluation.n_questions == 3


def test_a_uniform_model_gives_log_256_for_every_byte() -> None:
    model = build()
    with torch.no_grad():
        model.unembedding.zero_()
    evaluation = evaluate(model, QUESTIONS)
    assert evaluation.nll_per_byte == pytest.approx(math.log(256), rel=1e-6)
    assert evaluation.perplexity == pytest.approx(256, rel=1e-5)


def test_the_boundary_is_where_the_question_puts_it() -> None:
    """A blank at the end of the prompt is read; at the start of an answer it is scored."""
    model = build()
    inside = Question(prompt="the ", choices=["mat", "hat"], answer=0)
    outside = Question(prompt="the", choices=[" mat", " hat"], answer=0)
    blank = log_likelihood(model, "the", " ")
    assert -4 * evaluate(model, [outside]).nll_per_byte == pytest.approx(
        -3 * evaluate(model, [inside]).nll_per_byte + blank, rel=1e-5
    )


def test_questions_survive_being_saved(tmp_path: Path) -> None:
    save_questions(tmp_path / "asked.jsonl", QUESTIONS)
    assert load_questions(tmp_path / "asked.jsonl") == QUESTIONS


GOOD = {"prompt": "p", "choices": ["a", "b"], "answer": 1}


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"prompt": "p", "choices": ["a", "b"]}, "answer"),
        ({**GOOD, "answer": 2}, "none of the 2 choices"),
        ({**GOOD, "answer": -1}, "answer"),
        ({**GOOD, "choices": ["a"]}, "choices"),
        ({**GOOD, "choices": ["a", ""]}, "empty"),
        ({**GOOD, "choices": ["a", "a"]}, "same"),
        ({**GOOD, "prompt": 3}, "prompt"),
        ({**GOOD, "hint": "h"}, "hint"),
        ("no object", "object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: object, named: str) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(bad) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=rf"asked\.jsonl, line 2.*{named}"):
        load_questions(path)


def test_no_questions_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(ValueError, match=r"none\.jsonl holds no question"):
        load_questions(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="no questions"):
        evaluate(build(), [])
