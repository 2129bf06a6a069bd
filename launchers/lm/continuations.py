"""Multiple-choice questions about how a held-out text goes on.

Each asker turns documents into questions, in random order and as many as there are. The wrong
choices are right answers to other questions of the same kind.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator

from carbs.launchers.lm.answers import Question
from carbs.launchers.lm.exercises import PRINTED

Asker = Callable[[Iterable[str], random.Random], Iterator[Question]]

N_CHOICES = 4
# Bytes. Together with the start they fit in a sequence of 128, so that a model that was trained on
# such sequences is asked about no place that it has not seen.
MIN_PROMPT, MAX_PROMPT = 24, 80
MIN_ANSWER, MAX_ANSWER = 8, 40


def ask_lines(texts: Iterable[str], rng: random.Random) -> Iterator[Question]:
    """Which line comes next? The wrong choices are as deeply indented."""
    continuations = []
    for text in texts:
        lines = text.splitlines(keepends=True)
        for i, line in enumerate(lines):
            answer = line.lstrip(" \t")
            indent = line[: len(line) - len(answer)]
            # The prompt is whole lines, and the indentation of the answer.
            prompt = indent
            for before in reversed(lines[:i]):
                if _size(before + prompt) > MAX_PROMPT:
                    break
                prompt = before + prompt
            if _size(prompt) - len(indent) >= MIN_PROMPT:
                continuations.append((prompt, answer, indent))
    return _multiple_choice(continuations, rng, MIN_ANSWER)


def ask_sentences(texts: Iterable[str], rng: random.Random) -> Iterator[Question]:
    """How does the sentence end? The wrong choices have as many words."""
    continuations = []
    for text in texts:
        for sentence in _SENTENCE.finditer(text):
            words = list(re.finditer(r"\S+", sentence[0]))
            n_asked = 3 + len(words) % 3
            if len(words) >= 2 * n_asked:
                cut = sentence.start() + words[-n_asked].start()
                prompt = text[max(0, cut - MAX_PROMPT) : cut]
                continuations.append((prompt, text[cut : sentence.end()], n_asked))
    return _multiple_choice(continuations, rng, MIN_ANSWER)


# Within a paragraph, from a capital to a full stop.
_SENTENCE = re.compile(r"\b[A-Z](?:[^.!?\n]|\n(?!\s*\n)){20,400}[.!?](?=\s)")


def ask_values(programs: Iterable[str], rng: random.Random) -> Iterator[Question]:
    """What does the program print last? The wrong choices have as many numbers."""
    continuations = []
    for program in programs:
        before, values = program.rsplit(PRINTED, 1)
        continuations.append((before + PRINTED, values, len(values.split())))
    return _multiple_choice(continuations, rng, min_answer=1)


def _multiple_choice(
    continuations: Iterable[tuple[str, str, Hashable]], rng: random.Random, min_answer: int
) -> Iterator[Question]:
    """Questions of (prompt, answer, kind), except those that are too long or short."""
    by_kind: dict[Hashable, dict[str, None]] = defaultdict(dict)
    fitting = []
    for prompt, answer, kind in continuations:
        if _size(prompt) <= MAX_PROMPT and min_answer <= _size(answer) <= MAX_ANSWER:
            fitting.append((prompt, answer, kind))
            by_kind[kind][answer] = None
    answers = {kind: list(of_kind) for kind, of_kind in by_kind.items()}
    rng.shuffle(fitting)
    for prompt, answer, kind in fitting:
        if len(answers[kind]) >= N_CHOICES:
            drawn = rng.sample(answers[kind], N_CHOICES)
            choices = [answer, *(other for other in drawn if other != answer)][:N_CHOICES]
            rng.shuffle(choices)
            yield Question(prompt=prompt, choices=choices, answer=choices.index(answer))


def _size(text: str) -> int:
    return len(text.encode())
