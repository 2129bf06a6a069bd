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
import math
import os
import platform
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from carbs.launchers.job.distributed import ALONE, World, answered, local_device, process_group
from carbs.launchers.job.protocol import BadConfigurationError, Job, Result
from carbs.launchers.job.sharded_checkpoint import ShardedCheckpoints, State
from carbs.launchers.lm.config import Config, configure
from carbs.launchers.lm.data import contamination
from carbs.launchers.lm.data.corpus import Corpus, prepare
from carbs.launchers.lm.data.mix import DataMix, Phase
from carbs.launchers.lm.guards import DivergedError, Guards, zero
from carbs.launchers.lm.held_out import bits_per_byte, held_out_losses
from carbs.launchers.lm.memory import GIB, MemoryMeter, estimate_memory, peak_flops
from carbs.launchers.lm.model import Transformer
from carbs.launchers.lm.optimizer import build_optimizers, schedule
from carbs.launchers.lm.parallel import Spread, local, micro_batches, whole
from carbs.launchers.lm.question_sets import QuestionSets


def train(params: Mapping[str, Any], job: Job) -> Result:
    """Trains one model, as :class:`~carbs.launchers.lm.config.Config` says.

    Raises:
        BadConfigurationError: the run diverged or ran out of memory.
        Preempted: the machine is taken away; the next attempt goes on from the checkpoint.
        StoppedEarly: the controller wishes it.
        TaskLostError: another task of this job has failed.
        ValueError: a parameter or setting is unknown or impossible. The message names it.
    """
    config = configure(params, job.settings)
    torch.set_num_threads(config.threads or int(os.environ.get("SLURM_CPUS_PER_TASK", 1)))
    device = local_device()
    with process_group(device, timeout_s=config.task_timeout_s) as world:
        return _train(config, job, world)


def _train(config: Config, job: Job, world: World) -> Result:
    device, steps = world.device, config.steps
    corpus, questions, found = prepare_run(config, job.shared_folder, world=world)
    shape = config.shape(corpus.tokenizer.vocab_size)
    n_sequences = steps * config.sequences
    tokens = n_sequences * config.seq_len
    weights = config.mix or {name: 1 / len(corpus.components) for name in corpus.components}
    mid_begins = round(config.mid_start * n_sequences)
    later = [Phase(mid_begins, config.mid_mix)] if config.mid_mix else []
    mix = DataMix(corpus, weights, config.seq_len, job.seed, later)
    mix.refuse_repetition(n_sequences, config.max_epochs)
    n_parts = min(N_LOOKS + 1, tokens // LOOK_TOKENS)
    looks = {round(steps * part / n_parts) for part in range(1, n_parts)}

    memory, expected = MemoryMeter(device), estimate_memory(config, shape, device, world.size)
    if expected.state > memory.of:
        raise BadConfigurationError(_out_of_memory(config, expected.state, None, memory.of))
    stopwatch = _Stopwatch(device, world.size)
    checkpoints = ShardedCheckpoints(
        job, world, config.checkpoint_every_s, in_background=device.type == "cuda"
    )
    try:
        model = Transformer(shape, torch.Generator().manual_seed(job.seed)).to(device)
        training = _Training(model, config, world)
        training.warm_up(mix, job.seed)
        resumed_at, state = checkpoints.load(training.tensors())
        training.begin_at(state)
        stopwatch = _Stopwatch(device, world.size, 0.0 if state is None else state["cost"])

        def state_now() -> State:
            training.guards.read(steps)
            values = {"guards": training.guards.state(), "cost": stopwatch.cost}
            return training.tensors(), values

        for step, batch in _batches(mix, resumed_at, config, job.seed, world):
            training.step(step, batch)
            done = step + 1
            if done % READ_EVERY == 0 or done == steps:
                training.guards.read(steps)
            if done in looks:
                with stopwatch.paused():
                    nll = questions.look(model, LOOK_QUESTIONS)
                    report = partial(job.report, done / steps, nll, stopwatch.cost)
                    world.follow_first(report)
            checkpoints.after_step(done, state_now, around=stopwatch.paused)
        cost, losses = stopwatch.cost, training.guards.losses
        checkpoints.finish()
        held_out = held_out_losses(model, corpus, config.seq_len, world)
        asked = questions.ask(model)
        if not math.isfinite(asked.output):  # the last step can spoil the model as well
            raise DivergedError(f"the answers' nll is {asked.output}")
    except DivergedError as error:
        raise BadConfigurationError(f"diverged: {error}", cost=stopwatch.cost) from None
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = _out_of_memory(config, expected.total, memory.used, memory.of)
        raise BadConfigurationError(reason, cost=stopwatch.cost) from error

    if world.rank == 0:
        asked.save(job)
    last = losses[-math.ceil(len(losses) / 10) :]
    train_loss = sum(last) / len(last)
    of_last = mix.bytes_per_token(n_sequences - len(last) * config.sequences, n_sequences)
    environment = _environment(device)
    flops = shape.flops_per_token(config.seq_len) * tokens
    peak = peak_flops(environment["device"])
    return Result(
        output=asked.output,
        cost=cost,
        metrics={
            "evaluations": asked.evaluations,
            "n_params": shape.n_params,
            "tokens": tokens,
            "steps": steps,
            "batch_tokens": config.sequences * config.seq_len,
            "flops": flops,
            "tokens_per_second": tokens / cost,
            "mfu": None if peak is None else flops / (cost * peak),
            "memory": {
                "expected_gib": expected.total / GIB,
                "used_gib": memory.used / GIB,
                "device_gib": memory.of / GIB,
            },
            "tasks": world.size,
            "final_train_loss": train_loss,
            "final_train_bits_per_byte": bits_per_byte(train_loss, of_last),
            "held_out_bits_per_byte": held_out,
            "guards": training.guards.record(),
            "mix": dict(weights),
            "data": mix.facts(n_sequences),
            "tokenizer": f"{corpus.tokenizer.name} {corpus.tokenizer.version}",
            "contamination": found,
            "corpus": corpus.folder.name,
            "checkpoints": {
                "resumed_at": resumed_at,
                "written": checkpoints.n_written,
                "failures": checkpoints.failures,
                "skipped": checkpoints.skipped,
            },
            "environment": environment,
        },
    )


class Prepared(NamedTuple):
    """What does not depend on the run, or only on its tokenizer and the like.

    Attributes:
        corpus: its text, tokenized.
        questions: that it is asked.
        contamination: what of these was trained on; None where that is not to be measured.
    """

    corpus: Corpus
    questions: QuestionSets
    contamination: dict[str, Any] | None


def prepare_run(
    config: Config, folder: Path, *, world: World = ALONE, n_processes: int | None = None
) -> Prepared:
    """What has to be there before a run begins; the first one makes it, later ones find it.

    Args:
        config: of the run.
        folder: that the sweep's jobs share.
        world: tasks that will share the scoring.
        n_processes: as many as the processors that this process may use by default.

    Raises:
        ValueError: a setting is impossible, or the data are not what they should be.
    """
    corpus = prepare(config.data, folder, config.tokenizer, n_processes)
    asked_of = {**corpus.question_sets, **config.questions}
    if not asked_of:
        raise ValueError(
            "there is no question: the held-out text gives none. Name a file of questions in the "
            "setting 'questions', or give more text"
        )
    questions = QuestionSets(
        asked_of,
        config.sealed,
        config.weights,
        encode=corpus.tokenizer.encode,
        start=corpus.tokenizer.start,
        max_tokens=config.seq_len,
        world=world,
    )
    if not config.contamination:
        return Prepared(corpus, questions, None)
    texts = {
        name: [question.prompt + question.choices[question.answer] for question in asked]
        for name, asked in questions.sets.items()
    }
    return Prepared(corpus, questions, contamination.measure(corpus, texts, n_processes))


N_LOOKS = 9  # along a run, at the most
LOOK_TOKENS = 8_192  # at least so many are trained on between two looks
LOOK_QUESTIONS = 4  # of each set, the same at every look of every run
READ_EVERY = 10  # steps; nothing waits for the device in between


class _Training:
    """A model on its way, spread over the tasks: all that a checkpoint must hold of it."""

    def __init__(self, model: Transformer, config: Config, world: World) -> None:
        self.model, self.config, self.world = model, config, world
        compiled = world.device.type == "cuda" if config.compile is None else config.compile
        self._spread = Spread(model, world, config.parallel, compile=compiled)
        self._optimizers = build_optimizers(model, config)
        # Kept, as after an evaluation FSDP has some in the model whole, in place of their shards.
        self._parameters = dict(model.named_parameters())
        self.guards = Guards(world.device, skip_spikes=config.skip_spikes)
        self._initial: list[torch.Tensor] = []

    def step(self, step: int, batch: _Batch) -> None:
        """One step, counted from 0. Nothing here waits for the device."""
        config, world, parameters = self.config, self.world, list(self._parameters.values())
        share = schedule(step, config.steps, config)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
        # Each task's gradients are divided by their number, where those of all are added up.
        n_tokens = config.sequences * config.seq_len
        loss = torch.zeros((), device=world.device)
        for number, (tokens, targets, keys) in enumerate(batch, start=1):
            with self._spread.backward(is_last=number == len(batch)):
                with _precision(world.device):
                    nll = self._spread.loss(
                        tokens, targets=targets, dropout_keys=keys if config.dropout else None
                    )
                (nll * (world.size / n_tokens)).backward()
            loss += nll.detach() / n_tokens
        world.add([loss])
        with answered():
            norm = whole(torch.nn.utils.clip_grad_norm_(parameters, config.clip_norm))
            skipped = self.guards.check(step, loss, norm)
            zero((local(p.grad) for p in parameters if p.grad is not None), skipped)
            for optimizer in self._optimizers:
                optimizer.step()

    def warm_up(self, mix: DataMix, seed: int) -> None:
        """Part of a step, to be undone: a process's first is slow, and no part of the cost."""
        self._initial = [local(p).detach().clone() for p in self._parameters.values()]
        self.step(0, _micro_batches(mix, 0, self.config, seed, self.world)[:2])

    def begin_at(self, state: Mapping[str, Any] | None) -> None:
        """Undoes the warm-up, unless a checkpoint has, whose plain values these are."""
        self.guards.begin_at(None if state is None else state["guards"])
        if state is None:
            with torch.no_grad():
                parameters = self._parameters.values()
                for parameter, initial in zip(parameters, self._initial, strict=True):
                    local(parameter).copy_(initial)
                for optimizer in self._optimizers:
                    for moments in optimizer.state.values():
                        for moment in moments.values():
                            local(moment).zero_()
        self._initial = []

    def tensors(self) -> dict[str, torch.Tensor]:
        """Those of a checkpoint, by name; what is written into them is what counts."""
        found = {"guards.recent": self.guards.recent}
        for name, parameter in self._parameters.items():
            found[f"model.{name}"] = parameter.detach()
            for optimizer in self._optimizers:
                for key, moment in optimizer.state.get(parameter, {}).items():
                    found[f"optimizer.{name}.{key}"] = moment
        return found


_Batch = list[tuple[torch.Tensor, ...]]  # tokens, targets and dropout keys of each micro-batch


def _batches(
    mix: DataMix, start: int, config: Config, seed: int, world: World
) -> Iterator[tuple[int, _Batch]]:
    """Each step and its batch; beside a GPU, the next is made while one is trained on."""
    steps = range(start, config.steps)
    make = partial(_micro_batches, mix, config=config, seed=seed, world=world)
    if world.device.type == "cpu":
        yield from ((step, make(step)) for step in steps)
        return
    with ThreadPoolExecutor(1, "batches") as thread:
        made = thread.submit(make, start)
        for step in steps:
            batch = made.result()
            if step + 1 in steps:
                made = thread.submit(make, step + 1)
            yield step, batch


def _micro_batches(mix: DataMix, step: int, config: Config, seed: int, world: World) -> _Batch:
    batch = mix.batch(step, config.sequences)
    rng = np.random.default_rng([seed, step, len(batch)])
    keys = torch.from_numpy(rng.integers(2**63, size=len(batch)))
    parts = micro_batches(batch, keys, world, config.micro_batch_size)
    if world.device.type == "cpu":
        return parts
    return [
        tuple(tensor.pin_memory().to(world.device, non_blocking=True) for tensor in part)
        for part in parts
    ]


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


def _out_of_memory(config: Config, expected: int, used: int | None, of: int) -> str:
    sequences = min(config.sequences, config.micro_batch_size)
    most = "" if used is None else f"{used / GIB:.3g} GiB were used at the most, "
    return (
        f"out of memory: width {config.width}, depth {config.depth}, {sequences} sequences of "
        f"{config.seq_len} at once: {expected / GIB:.3g} GiB were expected, {most}"
        f"and the device has {of / GIB:.3g}"
    )


def _environment(device: torch.device) -> dict[str, Any]:
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
