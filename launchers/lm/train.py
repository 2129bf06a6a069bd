"""The training function: ``train(params, job)`` trains one model and asks it the questions.

``output`` is the log of answer perplexity, the mean over the question sets of their nats per byte
(lower is better). ``cost`` is the device's seconds in the training loop alone. With the same
parameters and seed, the output is the same to the last bit on the same machine's CPU.

Along the run, a few of the questions are asked, and their mean nll is reported as its learning
curve. The looks are so few that they take some percent of the time, and like the questions at the
end they are no part of the cost.
"""

from __future__ import annotations

import contextlib
import copy
import math
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from launchers.job import BadConfigurationError, Job, Result
from launchers.lm.answers import evaluate, load_questions
from launchers.lm.data import BUILTIN, BUILTIN_SETS, DataMix, prepare
from launchers.lm.model import ModelConfig, Transformer

Model = TypeVar("Model", bound=BaseModel)


class Params(BaseModel):
    """What a sweep may search, with what holds when it does not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = 64  # a multiple of 16
    depth: int = 2
    learning_rate: float = Field(default=0.01, gt=0)  # at the end of the warm-up
    batch_size: int = Field(default=8, ge=1)  # sequences
    tokens: int = Field(default=262_144, ge=1)  # to train on, to the nearest whole batch
    mix: dict[str, float] | None = None  # share of each component; equal shares by default
    weight_decay: float = Field(default=0.1, ge=0)  # times the learning rate, at each step
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)  # of the steps


class Settings(BaseModel):
    """What stays the same over a sweep: the ``settings`` of its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq_len: int = Field(default=128, ge=1)  # bytes
    # Sequences that pass through the model at once: bounds the memory, and changes only rounding.
    micro_batch_size: int = Field(default=16, ge=1)
    threads: int = Field(default=1, ge=1)  # of the CPU
    data: dict[str, str] = dict.fromkeys(BUILTIN_SETS, BUILTIN)  # or a folder or glob for each
    questions: dict[str, Path] = {}  # JSON Lines files, beside the sets made of the data


def train(params: Mapping[str, Any], job: Job) -> Result:
    """Trains one model, as :class:`Params` and :class:`Settings` say.

    Raises:
        BadConfigurationError: the run diverged or ran out of memory.
        ValueError: a parameter or setting is unknown or impossible. The message names it.
    """
    p = _validate(Params, params, "parameter")
    settings = _validate(Settings, job.settings, "setting")
    config = ModelConfig(p.width, p.depth)
    torch.set_num_threads(settings.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    corpus = prepare(settings.data, job.shared_folder)
    weights = p.mix or {name: 1 / len(corpus.components) for name in corpus.components}
    mix = DataMix(corpus, weights, settings.seq_len, job.seed)
    questions = {
        name: load_questions(path)
        for name, path in {**corpus.question_sets, **settings.questions}.items()
    }

    steps = max(1, round(p.tokens / (p.batch_size * settings.seq_len)))
    tokens = steps * p.batch_size * settings.seq_len
    n_parts = min(N_LOOKS + 1, tokens // LOOK_TOKENS)
    looks = {round(steps * part / n_parts) for part in range(1, n_parts)}
    started, looking = _now(device), 0.0
    try:
        model = Transformer(config, torch.Generator().manual_seed(job.seed)).to(device)
        # A process is slow at first, which would blur the cost of the smallest runs.
        one = p.model_copy(update={"batch_size": 1})
        _fit(copy.deepcopy(model), mix, one, 1, steps, stop_after=1)
        started = _now(device)

        def look(step: int) -> None:
            nonlocal looking
            if step in looks:
                paused = _now(device)
                nlls = [
                    evaluate(model, q[:LOOK_QUESTIONS]).nll_per_byte for q in questions.values()
                ]
                job.report(step / steps, sum(nlls) / len(nlls), paused - started - looking)
                looking += _now(device) - paused

        size = settings.micro_batch_size
        losses = _fit(model, mix, p, size, steps, stop_after=steps, after_step=look)
        cost = _now(device) - started - looking
        evaluations = {name: evaluate(model, asked) for name, asked in questions.items()}
        output = sum(e.nll_per_byte for e in evaluations.values()) / len(evaluations)
        if not math.isfinite(output):  # the last step can spoil the model as well
            raise _DivergedError(f"the answers' nll is {output}")
    except _DivergedError as error:
        spent = _now(device) - started - looking
        raise BadConfigurationError(f"diverged: {error}", cost=spent) from None
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = f"out of memory: width {p.width}, depth {p.depth}, batch size {p.batch_size}"
        spent = _now(device) - started - looking
        raise BadConfigurationError(reason, cost=spent) from error

    last = losses[-math.ceil(len(losses) / 10) :]
    return Result(
        output=output,
        cost=cost,
        metrics={
            "evaluations": {
                name: {**asdict(e), "perplexity": e.perplexity} for name, e in evaluations.items()
            },
            "n_params": config.n_params,
            "tokens": tokens,
            "steps": steps,
            "flops": config.flops_per_token(settings.seq_len) * tokens,
            "tokens_per_second": tokens / cost,
            "final_train_loss": sum(last) / len(last),
            "mix": dict(weights),
            "corpus": corpus.folder.name,
            "environment": _environment(device),
        },
    )


class _DivergedError(Exception):
    """The message says what was seen, and when."""


def _fit(
    model: Transformer,
    mix: DataMix,
    p: Params,
    micro_batch_size: int,
    steps: int,
    *,
    stop_after: int,
    after_step: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Trains in place for the first ``stop_after`` of ``steps``; their losses, in nats per byte."""
    device = model.embedding.device
    optimizer = _optimizer(model, p)
    losses: list[float] = []
    smoothed = 0.0
    for step in range(stop_after):
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * schedule(step, steps, p.warmup_fraction)
        batch = mix.batch(step, p.batch_size).to(device)
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for part in batch.chunk(math.ceil(len(batch) / micro_batch_size)):
            with _precision(device):
                logits = model(part[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
            loss = loss * (len(part) / len(batch))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        losses.append(total.item())
        smoothed = SMOOTHING * (smoothed if step else losses[0]) + (1 - SMOOTHING) * losses[-1]
        rising = step >= steps / 10 and smoothed > losses[0] + DIVERGED_NATS
        if rising or not math.isfinite(losses[-1]):
            raise _DivergedError(f"loss is {losses[-1]:.3g} at step {step + 1} of {steps}")
        after_step(step + 1)
    return losses


N_LOOKS = 9  # along a run, at the most
LOOK_TOKENS = 8_192  # at least so many are trained on between two looks
LOOK_QUESTIONS = 4  # of each set, the same at every look of every run
SMOOTHING = 0.9  # share of the past in the running mean of the loss
DIVERGED_NATS = 0.5  # above the loss of the first step


def schedule(step: int, steps: int, warmup_fraction: float) -> float:
    """The share of the peak learning rate at a step: a linear rise, then a linear fall to zero."""
    warmup = round(warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / (steps - warmup)


def _optimizer(model: Transformer, p: Params) -> torch.optim.Optimizer:
    blocks = list(model.blocks.parameters())
    ends = [model.embedding, model.unembedding]
    groups = [
        {"params": blocks, "weight_decay": p.weight_decay},
        {"params": ends, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=p.learning_rate, betas=(0.9, 0.95), fused=True)


def _precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def _now(device: torch.device) -> float:
    """Seconds of the device spent so far, on a clock of its own.

    On a GPU, time on the clock, once the queued work is done. On a CPU, time of the processor:
    other work on the machine must not make a configuration look expensive.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(
        words in str(error) for words in ("DefaultCPUAllocator", "not enough memory")
    )


def _environment(device: torch.device) -> dict[str, str | None]:
    is_cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if is_cuda else platform.machine(),
        "hostname": socket.gethostname(),
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    """The commit of this code, where it is run from a checkout that has one."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _validate(model: type[Model], values: Mapping[str, Any], kind: str) -> Model:
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            known = ", ".join(model.model_fields)
            raise ValueError(f"unknown {kind} {name!r}; there are {known}") from error
        raise ValueError(f"{kind} {name!r}: {problem['msg']}") from error
