"""Answer perplexity: against computations by hand, and at the boundary of prompt and answer."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from carbs.launchers.lm.answers import (
    Question,
    evaluate,
    load_questions,
    save_questions,
    score,
)
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
    nll, per_answer, right, likelihood = 0.0, 0.0, 0, 0.0
    for question in QUESTIONS:
        scores = [log_likelihood(model, question.prompt, choice) for choice in question.choices]
        sizes = [len(choice.encode()) for choice in question.choices]
        per_byte = [score / size for score, size in zip(scores, sizes, strict=True)]
        nll -= per_byte[question.answer]
        per_answer -= scores[question.answer]
        right += per_byte.index(max(per_byte)) == question.answer
        likelihood += math.exp(scores[question.answer]) / sum(map(math.exp, scores))
    evaluation = evaluate(model, QUESTIONS, tokens_per_batch)
    assert evaluation.nll_per_byte == pytest.approx(nll / 3, rel=1e-5)
    assert evaluation.nll_per_answer == pytest.approx(per_answer / 3, rel=1e-5)
    assert evaluation.accuracy == pytest.approx(right / 3)
    assert evaluation.choice_likelihood == pytest.approx(likelihood / 3, rel=1e-4)
    assert evaluation.perplexity == pytest.approx(math.exp(nll / 3), rel=1e-5)
    assert evaluation.n_questions == 3


def test_scores_do_not_depend_on_the_batch_or_its_padding() -> None:
    model = build()
    rng = random.Random(0)
    asked = [
        Question(prompt="p" * rng.randrange(120), choices=["a" * (1 + i % 9), "bc"], answer=0)
        for i in range(60)
    ]
    alone = [score(model, [question])[0].log_likelihoods for question in asked]
    for tokens_per_batch in (1, 300, 100_000):
        together = score(model, asked, tokens_per_batch)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one, other.log_likelihoods, atol=1e-4)


def test_one_choice_is_right_where_the_model_would_say_it() -> None:
    """As with LAMBADA: there is nothing to choose from."""
    model = build()
    said = "".join(greedy(model, "the ", 3))
    questions = [
        Question(prompt="the ", choices=[said], answer=0),
        Question(prompt="the ", choices=[said[:2] + ("b" if said[2] == "a" else "a")], answer=0),
    ]
    evaluation = evaluate(model, questions)
    assert evaluation.accuracy == 0.5
    assert evaluation.choice_likelihood is None


def greedy(model: Transformer, prompt: str, n: int) -> list[str]:
    """What the model says, as long as it says ASCII; else it is taught to."""
    with torch.no_grad():
        model.unembedding[128:] = 0
        model.unembedding[:32] = 0
    text = prompt
    for _ in range(n):
        with torch.no_grad():
            logits = model(torch.tensor([list(b"\0" + text.encode())]))[0, -1]
        text += chr(int(logits.argmax()))
    return list(text[len(prompt) :])


def test_tokens_over_the_boundary_count_to_every_choice() -> None:
    """A tokenizer that joins the blank with the word after it: both choices score the blank."""
    vocabulary = ["the", " mat", " ", "hat", "s"]

    def encode(text: str) -> list[int]:
        found = []
        while text:
            token = next(t for t in vocabulary if text.startswith(t))
            found.append(10 + vocabulary.index(token))
            text = text.removeprefix(token)
        return found

    model = build()
    asked = Question(prompt="the ", choices=["mats", "hat"], answer=0)
    scored = score(model, [asked], encode=lambda texts: [*map(encode, texts)], start=7)[0]
    with torch.no_grad():
        log_p = [model(torch.tensor([[7, *encode(text)]])).log_softmax(-1)[0] for text in TEXTS]
    for found, by_hand, text in zip(scored.log_likelihoods, log_p, TEXTS, strict=True):
        tokens = encode(text)
        assert found == pytest.approx(
            sum(by_hand[i, token].item() for i, token in enumerate(tokens) if i > 0), rel=1e-5
        )


TEXTS = ("the mats", "the hat")


def test_a_long_prompt_loses_its_beginning_and_that_is_counted() -> None:
    model = build()
    long = Question(prompt="x" * 90 + "the ", choices=["mat", "house"], answer=1)
    short = Question(prompt="the ", choices=["mat", "house"], answer=1)
    cut = evaluate(model, [long], max_tokens=9)
    assert cut.n_cut == 1
    assert cut.nll_per_byte == pytest.approx(evaluate(model, [short]).nll_per_byte, rel=1e-6)
    assert evaluate(model, [short], max_tokens=9).n_cut == 0
    assert evaluate(model, [long], max_tokens=98).n_cut == 1
    assert evaluate(model, [long], max_tokens=99).n_cut == 0


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
        ({**GOOD, "choices": []}, "choices"),
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
