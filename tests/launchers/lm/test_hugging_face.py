"""Models of another library, against that library's own loss on the answers' tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from carbs.analysis import ComputeLaw, UndeterminedLawWarning, fit_runs
from carbs.analysis.laws.runs import guess_columns
from carbs.launchers.lm.answers import Question, summarise
from carbs.launchers.lm.hugging_face import (
    checkpoint_runs,
    non_embedding,
    score_transformers,
)

QUESTIONS = [
    Question(prompt="The cat sat on the", choices=[" mat.", " idea of the cat"], answer=0),
    Question(prompt="", choices=["the cat", "a cat sat", "Ünë"], answer=2),
    Question(prompt="The cat saw the cat that sat on a", choices=[" mat", " cat."], answer=1),
    Question(prompt="The cat sat", choices=[" on the mat"], answer=0),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes and a few of their pairs."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["The cat sat on the mat."] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")


def gpt2(vocabulary: int, width: int = 16) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"n_positions": 64, "n_embd": width, "n_layer": 2, "n_head": 2}
    config = GPT2Config(vocab_size=vocabulary, **shape, bos_token_id=0, eos_token_id=0)
    config.initializer_range = 0.5  # so that the choices differ
    return GPT2LMHeadModel(config).eval()


def llama(vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = LlamaConfig(
        vocab_size=vocabulary,
        **{"hidden_size": 16, "intermediate_size": 24, **heads},
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def own_loss(model: PreTrainedModel, tokenizer: Any, question: Question, choice: str) -> float:
    """The library's mean loss on the choice's tokens alone, times their number."""
    prompt = [0, *tokenizer(question.prompt, add_special_tokens=False)["input_ids"]]
    answer = tokenizer(choice, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([prompt + answer])
    labels = torch.tensor([[-100] * len(prompt) + answer])
    with torch.no_grad():
        return float(model(input_ids=tokens, labels=labels).loss) * len(answer)


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("tokens_per_batch", [1, 4096])
def test_scores_are_the_librarys_own_loss(
    build: Any, tokenizer: Any, tokens_per_batch: int
) -> None:
    model = build(len(tokenizer))
    scores = score_transformers(model, tokenizer, QUESTIONS, tokens_per_batch)
    per_byte = []
    for question, scored in zip(QUESTIONS, scores, strict=True):
        losses = [own_loss(model, tokenizer, question, choice) for choice in question.choices]
        np.testing.assert_allclose(-scored.log_likelihoods, losses, rtol=1e-5)
        answer = question.choices[question.answer]
        per_byte.append(losses[question.answer] / len(answer.encode()))
    found = summarise(QUESTIONS, scores)
    assert found.nll_per_byte == pytest.approx(sum(per_byte) / len(per_byte), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.nll_per_byte))


def test_a_prompt_beyond_the_models_places_loses_its_beginning(tokenizer: Any) -> None:
    model = gpt2(len(tokenizer))
    long = QUESTIONS[0].model_copy(update={"prompt": " and so" * 40 + QUESTIONS[0].prompt})
    scores = score_transformers(model, tokenizer, [long, QUESTIONS[0]])
    assert [scored.is_cut for scored in scores] == [True, False]
    endless = Question(prompt="", choices=["xyz" * 50], answer=0)
    with pytest.raises(ValueError, match="150 tokens, and the model sees 64"):
        score_transformers(model, tokenizer, [endless])


def test_a_tokenizer_without_a_start_is_an_error(tokenizer: Any) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    model = llama(len(tokenizer))
    with pytest.raises(ValueError, match="say start="):
        score_transformers(model, bare, QUESTIONS)
    assert score_transformers(model, bare, QUESTIONS, start=0)[0].log_likelihoods[0] < 0


def test_checkpoints_are_runs_that_laws_are_fitted_to(tokenizer: Any, tmp_path: Path) -> None:
    checkpoints = {}
    for i, width in enumerate((8, 16, 24, 32, 40)):
        folder = tmp_path / f"gpt2-{width}"
        gpt2(len(tokenizer), width).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        checkpoints[str(folder)] = 1e6 * 2**i
    sets = {"first": QUESTIONS[:2], "second": QUESTIONS[2:]}
    runs = checkpoint_runs(checkpoints, sets, {"second": 3})
    assert list(runs["run"]) == [f"gpt2-{width}" for width in (8, 16, 24, 32, 40)]
    model = gpt2(len(tokenizer), 16)
    first, second = (
        summarise(asked, score_transformers(model, tokenizer, asked)) for asked in sets.values()
    )
    row = runs.iloc[1]
    expected = (first.nll_per_byte + 3 * second.nll_per_byte) / 4
    assert row["loss"] == pytest.approx(expected, rel=1e-5)
    assert row["loss.second"] == pytest.approx(second.nll_per_byte, rel=1e-5)
    assert row["flops"] == 6 * row["n_params"] * 2e6
    # Its blocks and last norm, by hand: attention 4 d², MLP 8 d², biases 9 d, norms 4 d; 2 d.
    assert row["n_params"] == 2 * (12 * 16**2 + 13 * 16) + 2 * 16 == non_embedding(model)
    # Random models obey no law, but the table is one that laws are read from.
    assert guess_columns(runs) == {
        "loss": "loss",
        "n_params": "n_params",
        "n_tokens": "n_tokens",
        "compute": "flops",
        "group": "run",
    }
    lawful = runs.assign(loss=1 + 50 * runs["flops"] ** -0.1)
    with pytest.warns(UndeterminedLawWarning, match="5 runs are few"):
        law = fit_runs(lawful, {"compute": "flops"}).law
    assert isinstance(law, ComputeLaw)
    assert law.g == pytest.approx(0.1, rel=0.2)
