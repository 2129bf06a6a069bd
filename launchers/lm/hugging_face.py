"""Causal models of the ``transformers`` library, asked the same questions.

What they answer is scored as the reference job's own models are: see
:mod:`carbs.launchers.lm.answers`. Their nats per byte stand on one curve with the sweep's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from carbs.launchers.lm.answers import Encode, Encoded, Question, Score, encoded, summarise

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PADDING = 0  # read by nobody: what is padded stands after what is scored


@torch.inference_mode()
def score_transformers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    tokens_per_batch: int = 4096,
    *,
    start: int | None = None,
    max_tokens: int | None = None,
) -> list[Score]:
    """What a causal model of ``transformers`` thinks of every choice; see :func:`summarise`.

    Args:
        model: scores on the device where its weights are; it is put into evaluation mode.
        tokenizer: its own.
        questions: one or more.
        tokens_per_batch: bounds the memory; the result does not depend on it beyond rounding.
        start: the token that stands before every prompt; by default the tokenizer's beginning of a
            sequence, else its end of one, which is what parted the documents in training.
        max_tokens: that the model is to see of prompt and choice; of longer ones the prompt's
            beginning is left out. By default what its configuration says, without one all.

    Raises:
        ValueError: there is no question, the tokenizer names no start, or a choice is longer than
            what the model can see.
    """
    if not questions:
        raise ValueError("cannot evaluate a model on no questions")
    if start is None:
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        start = next((token for token in known if token is not None), None)
    if start is None:
        raise ValueError("the tokenizer has no beginning or end of a sequence: say start=")
    if max_tokens is None:
        max_tokens = getattr(model.config, "max_position_embeddings", None)
    asked = encoded(questions, _encode(tokenizer), start, max_tokens)
    rows = [
        (q, c) for q, question in enumerate(asked) for c in range(len(question.targets))
    ]  # each choice by itself, as not every model takes masks and positions
    scores = [np.zeros(len(question.targets)) for question in asked]
    is_greedy = [False] * len(asked)
    model.eval()
    for batch in _batches(rows, asked, tokens_per_batch):
        texts = [_text(asked[q], c) for q, c in batch]
        length = max(map(len, texts))
        if max_tokens is not None and length > max_tokens:
            raise ValueError(f"a choice has {length} tokens, and the model sees {max_tokens}")
        tokens = torch.full((len(batch), length), _PADDING)
        is_there = torch.zeros(len(batch), length, dtype=torch.long)
        for i, text in enumerate(texts):
            tokens[i, : len(text)] = torch.tensor(text)
            is_there[i, : len(text)] = 1
        device = model.device
        logits = model(input_ids=tokens.to(device), attention_mask=is_there.to(device)).logits
        for i, (q, c) in enumerate(batch):
            target = torch.tensor(asked[q].targets[c], device=logits.device)
            before = len(asked[q].context) - 1
            predicted = logits[i, before : before + len(target)].float()
            log_p = predicted.log_softmax(-1).gather(-1, target[:, None])
            scores[q][c] = float(log_p.double().sum())
            if c == questions[q].answer:
                is_greedy[q] = bool((predicted.argmax(-1) == target).all())
    return [Score(scores[q], is_greedy[q], question.is_cut) for q, question in enumerate(asked)]


def checkpoint_runs(
    checkpoints: Mapping[str, float],
    questions: Mapping[str, Sequence[Question]],
    weights: Mapping[str, float] | None = None,
    *,
    device: str | torch.device = "cpu",
    tokens_per_batch: int = 4096,
    **loading: Any,
) -> pd.DataFrame:
    """Public checkpoints as runs: a table for :func:`carbs.analysis.fit_runs` and its like.

    Args:
        checkpoints: the tokens that each was trained on, by its folder or its name on a hub.
        questions: sets by their names.
        weights: of sets in the loss; 1 for those that are not named.
        device: to score on.
        tokens_per_batch: bounds the memory.
        loading: to ``AutoModelForCausalLM.from_pretrained``, such as ``dtype="bfloat16"``.

    Returns:
        A row a checkpoint: ``run``, ``n_params`` (N, without embedding and unembedding),
        ``n_tokens`` (D), ``flops`` (6 N D), ``loss`` in nats per byte as a sweep's output, and
        ``accuracy.SET`` and ``loss.SET`` of each set.

    Raises:
        ValueError: there is no set, a weight is of none of them, or see
            :func:`score_transformers`.
    """
    import pandas as pd
    from transformers import AutoModelForCausalLM, AutoTokenizer

    unknown = set(weights or {}) - set(questions)
    if unknown or not questions:
        raise ValueError(f"weights of {sorted(unknown)}, but the question sets are {[*questions]}")
    weight = {name: float((weights or {}).get(name, 1)) for name in questions}
    rows = []
    for name, n_tokens in checkpoints.items():
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, **loading).to(device)
        row: dict[str, Any] = {"run": Path(name).name, "n_params": non_embedding(model)}
        row |= {"n_tokens": float(n_tokens), "flops": 6.0 * row["n_params"] * n_tokens, "loss": 0.0}
        for set_name, asked in questions.items():
            found = summarise(asked, score_transformers(model, tokenizer, asked, tokens_per_batch))
            row["loss"] += weight[set_name] * found.nll_per_byte / sum(weight.values())
            row[f"loss.{set_name}"] = found.nll_per_byte
            row[f"accuracy.{set_name}"] = found.accuracy
        rows.append(row)
    return pd.DataFrame(rows)


def non_embedding(model: PreTrainedModel) -> int:
    """N: parameters without those that stand for tokens or places, each counted once."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    left_out = {id(p) for module in ends if module is not None for p in module.parameters()}
    for module in model.modules():  # learned places
        if isinstance(module, torch.nn.Embedding):
            left_out |= {id(p) for p in module.parameters()}
    return sum(p.numel() for p in model.parameters() if id(p) not in left_out)


def _encode(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """A text's own tokens, nothing before or after them."""

    def encode(texts: Sequence[str]) -> Sequence[Sequence[int]]:
        # Without a word on texts that are longer than the model: they are cut.
        return list(tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])

    return encode


def _text(question: Encoded, choice: int) -> list[int]:
    """What the model reads: a choice's last token predicts nothing, and is left out."""
    return [*question.context, *question.targets[choice][:-1]]


def _batches(
    rows: list[tuple[int, int]], asked: Sequence[Encoded], tokens_per_batch: int
) -> Iterator[list[tuple[int, int]]]:
    """Rows of similar length together, since the shorter ones are padded."""
    batch: list[tuple[int, int]] = []
    lengths = {(q, c): len(_text(asked[q], c)) for q, c in rows}
    for row in sorted(rows, key=lambda row: lengths[row]):
        if batch and (len(batch) + 1) * lengths[row] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    yield batch
