"""The training function: ``train(params, job)`` trains one model and asks it the questions.

``output`` is the log of answer perplexity, the mean over the question sets, by their weights, of
their nats per byte (lower is better). ``cost`` is the device's seconds in the training loop alone.
With the same parameters and seed, the output is the same to the last bit on the same machine's CPU.

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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from carbs.launchers.job.checkpoint import EVERY_S, Checkpoints
from carbs.launchers.job.distributed import TIMEOUT_S, World, local_device, process_group
from carbs.launchers.job.protocol import BadConfigurationError, Job, Result
from carbs.launchers.lm.data import BUILTIN, BUILTIN_SETS, DataMix, prepare
from carbs.launchers.lm.model import ModelConfig, Transformer
from carbs.launchers.lm.question_sets import QuestionSets

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
    weights: dict[str, float] = {}  # of question sets in the objective; 1 by default
    sealed: dict[str, Path] = {}  # questions whose scores nobody sees before `carbs unseal`
    checkpoint_every_s: float = Field(default=EVERY_S, ge=0)
    task_timeout_s: float = Field(default=TIMEOUT_S, gt=0)  # that one task waits for another


def train(params: Mapping[str, Any], job: Job) -> Result:
    """Trains one model, as :class:`Params` and :class:`Settings` say.

    Raises:
        BadConfigurationError: the run diverged or ran out of memory.
        Preempted: the machine is taken away; the next attempt goes on from the checkpoint.
        StoppedEarly: the controller wishes it.
        TaskLostError: another task of this job has failed.
        ValueError: a parameter or setting is unknown or impossible. The message names it.
    """
    p = _validate(Params, params, "parameter")
    settings = _validate(Settings, job.settings, "setting")
    torch.set_num_threads(settings.threads)
    device = local_device()
    with process_group(device, timeout_s=settings.task_timeout_s) as world:
        return _train(p, settings, job, world)


def _train(p: Params, settings: Settings, job: Job, world: World) -> Result:
    config, device = ModelConfig(p.width, p.depth), world.device
    corpus = prepare(settings.data, job.shared_folder)
    weights = p.mix or {name: 1 / len(corpus.components) for name in corpus.components}
    mix = DataMix(corpus, weights, settings.seq_len, job.seed)
    questions = QuestionSets(
        {**corpus.question_sets, **settings.questions},
        settings.sealed,
        settings.weights,
        max_tokens=settings.seq_len,
    )

    steps = max(1, round(p.tokens / (p.batch_size * settings.seq_len)))
    tokens = steps * p.batch_size * settings.seq_len
    n_parts = min(N_LOOKS + 1, tokens // LOOK_TOKENS)
    looks = {round(steps * part / n_parts) for part in range(1, n_parts)}
    stopwatch = _Stopwatch(device, world.size)
    checkpoints = Checkpoints(job, settings.checkpoint_every_s)
    try:
        model = Transformer(config, torch.Generator().manual_seed(job.seed)).to(device)
        # A process is slow at first, which would blur the cost of the smallest runs.
        one = p.model_copy(update={"batch_size": 1})
        _fit(_Training(copy.deepcopy(model), one), mix, one, 1, steps, world, stop_after=1)
        training = _Training(model, p)
        resumed_at, state = world.share(checkpoints.load() if world.rank == 0 else None)
        if state is not None:
            training.restore(state["training"])
        stopwatch = _Stopwatch(device, world.size, 0.0 if state is None else state["cost"])

        def state_now() -> dict[str, Any]:
            return {"training": training.state(), "cost": stopwatch.cost}

        def look(step: int) -> None:
            if step in looks:
                job.report(step / steps, questions.look(model, LOOK_QUESTIONS), stopwatch.cost)
            checkpoints.after_step(step, state_now)

        def after_step(step: int) -> None:
            with stopwatch.paused():
                world.follow_first(lambda: look(step))

        size = settings.micro_batch_size
        _fit(training, mix, p, size, steps, world, stop_after=steps, after_step=after_step)
        cost, losses = stopwatch.cost, training.losses
        asked = questions.ask(model)
        if not math.isfinite(asked.output):  # the last step can spoil the model as well
            raise _DivergedError(f"the answers' nll is {asked.output}")
    except _DivergedError as error:
        raise BadConfigurationError(f"diverged: {error}", cost=stopwatch.cost) from None
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = f"out of memory: width {p.width}, depth {p.depth}, batch size {p.batch_size}"
        raise BadConfigurationError(reason, cost=stopwatch.cost) from error

    if world.rank == 0:
        asked.save(job)
    last = losses[-math.ceil(len(losses) / 10) :]
    return Result(
        output=asked.output,
        cost=cost,
        metrics={
            "evaluations": asked.evaluations,
            "n_params": config.n_params,
            "tokens": tokens,
            "steps": steps,
            "flops": config.flops_per_token(settings.seq_len) * tokens,
            "tokens_per_second": tokens / cost,
            "tasks": world.size,
            "final_train_loss": sum(last) / len(last),
            "mix": dict(weights),
            "corpus": corpus.folder.name,
            "checkpoints": {
                "resumed_at": resumed_at,
                "written": checkpoints.n_written,
                "failures": checkpoints.failures,
                "skipped": checkpoints.skipped,
            },
            "environment": _environment(device),
        },
    )


class _DivergedError(Exception):
    """The message says what was seen, and when."""


class _Training:
    """A model on its way: all that a checkpoint must hold of it."""

    def __init__(self, model: Transformer, p: Params) -> None:
        self.model = model
        self.optimizer = _optimizer(model, p)
        self.losses: list[float] = []  # of each step, in nats per byte
        self.smoothed = 0.0

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
            "smoothed": self.smoothed,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = state["losses"].tolist()
        self.smoothed = state["smoothed"]


def _fit(
    training: _Training,
    mix: DataMix,
    p: Params,
    micro_batch_size: int,
    steps: int,
    world: World,
    *,
    stop_after: int,
    after_step: Callable[[int], None] = lambda step: None,
) -> None:
    """Trains in place, up to ``stop_after`` of ``steps``."""
    model, optimizer, losses = training.model, training.optimizer, training.losses
    device = model.embedding.device
    for step in range(len(losses), stop_after):
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * schedule(step, steps, p.warmup_fraction)
        batch = mix.batch(step, p.batch_size).to(device)
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        ours = batch.tensor_split(world.size)[world.rank]
        n_parts = math.ceil(len(ours) / micro_batch_size)  # a small batch may have none for us
        for part in ours.chunk(n_parts) if n_parts else ():
            with _precision(device):
                logits = model(part[:, :-1])
            loss = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
            loss = loss * (len(part) / len(batch))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        world.add([total, *_gradients(model)])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

        losses.append(total.item())
        past = training.smoothed if step else losses[0]
        training.smoothed = SMOOTHING * past + (1 - SMOOTHING) * losses[-1]
        rising = step >= steps / 10 and training.smoothed > losses[0] + DIVERGED_NATS
        if rising or not math.isfinite(losses[-1]):
            raise _DivergedError(f"loss is {losses[-1]:.3g} at step {step + 1} of {steps}")
        after_step(step + 1)


def _gradients(model: Transformer) -> list[torch.Tensor]:
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


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


class _Stopwatch:
    """The cost: seconds of so many devices since now, and ``before`` that; no pause counts."""

    def __init__(self, device: torch.device, n_devices: int, before: float = 0.0) -> None:
        self._device = device
        self._n_devices = n_devices
        self._before = before
        self._started = _now(device)
        self._paused_at: float | None = None

    @property
    def cost(self) -> float:
        now = _now(self._device) if self._paused_at is None else self._paused_at
        return self._before + self._n_devices * (now - self._started)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._paused_at = _now(self._device)
        try:
            yield
        finally:
            self._started += _now(self._device) - self._paused_at
            self._paused_at = None


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
