"""How fast the reference job trains: tokens a second and MFU, beside a plain loop and transformers.

    make bench-gpu
    python benchmarks/gpu.py [--limit-s 480] [--cases 350M/2048 ...] [--compile | --no-compile]

On a GPU, models of 125M and 350M parameters at sequences of 1,024 and 2,048 in bfloat16, compiled;
on a CPU two small ones in float32, not compiled. Each is trained on noise in three ways:

    carbs         the reference job's own step, with its batches, clipping and guards
    plain         the same model in the shortest loop that trains it: the ceiling
    transformers  a Llama of the same shape in that loop, where transformers is installed

The first two take turns, so that a slow minute of the machine is a slow minute of both. Seconds are
the device's, of the processor on a CPU. What does not fit into --limit-s is left out, and said so.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from carbs.launchers.job.distributed import World
from carbs.launchers.lm.config import Config
from carbs.launchers.lm.memory import GIB, estimate_memory, peak_flops
from carbs.launchers.lm.model import ModelConfig, Transformer
from carbs.launchers.lm.train import READ_EVERY, _batches, _now, _precision, _Training

N_ROUNDS = 5
ROUND_S = {"cuda": 1.5, "cpu": 0.5}


@dataclass(frozen=True)
class Case:
    """A model, and the batch that it is trained on."""

    name: str
    width: int
    depth: int
    vocab_size: int
    seq_len: int
    batch_size: int

    def config(self, *, compile: bool) -> Config:
        return Config(
            width=self.width,
            depth=self.depth,
            tied_embeddings=True,
            learning_rate=1e-4,
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            micro_batch_size=self.batch_size,
            tokens=10**6 * self.seq_len * self.batch_size,
            compile=compile,
        )

    @property
    def shape(self) -> ModelConfig:
        return ModelConfig(self.width, self.depth, vocab_size=self.vocab_size, tied_embeddings=True)


ON_GPU = [
    Case("350M", 1024, 24, 50_304, 2048, 16),
    Case("350M", 1024, 24, 50_304, 1024, 32),
    Case("125M", 768, 12, 50_304, 2048, 16),
    Case("125M", 768, 12, 50_304, 1024, 32),
]
ON_CPU = [
    Case("1M", 128, 4, 512, 256, 2),
    Case("1M", 128, 4, 512, 128, 4),
    Case("0.2M", 64, 4, 512, 256, 2),
    Case("0.2M", 64, 4, 512, 128, 4),
]
Step = Callable[[], None]
Way = Callable[..., Step]


class Noise:
    """In place of a data mix."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def batch(self, step: int, batch_size: int) -> torch.Tensor:
        shape = (batch_size, self.case.seq_len + 1)
        generator = torch.Generator().manual_seed(step)
        return torch.randint(self.case.vocab_size, shape, generator=generator)


def carbs(case: Case, device: torch.device, *, compile: bool) -> Step:
    """The reference job's own step."""
    config, world = case.config(compile=compile), World(0, 1, device)
    model = Transformer(case.shape, torch.Generator().manual_seed(0)).to(device)
    training, noise = _Training(model, config, world), Noise(case)
    training.warm_up(noise, 0)
    training.begin_at(None)
    batches = _batches(noise, 0, config, 0, world)

    def step() -> None:
        number, batch = next(batches)
        training.step(number, batch)
        if (number + 1) % READ_EVERY == 0:
            training.guards.read(config.steps)

    return step


def plain(case: Case, device: torch.device, *, compile: bool) -> Step:
    """The shortest loop that trains the same model."""
    model = Transformer(case.shape, torch.Generator().manual_seed(0)).to(device)
    return _loop(case, device, model, _ours_loss, compile=compile)


def transformers(case: Case, device: torch.device, *, compile: bool) -> Step:
    """A Llama of the same shape."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = case.shape
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.hidden_width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.n_heads,
        vocab_size=shape.vocab_size,
        max_position_embeddings=case.seq_len,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).to(device)
    return _loop(case, device, model, _llama_loss, compile=compile)


def _ours_loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return model(x, targets=y) / y.numel()


def _llama_loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=x).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())


def _loop(
    case: Case,
    device: torch.device,
    model: torch.nn.Module,
    loss_of: Callable[..., torch.Tensor],
    *,
    compile: bool,
) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    called = torch.compile(model) if compile else model
    noise = Noise(case)
    batches = itertools.cycle([noise.batch(step, case.batch_size).to(device) for step in range(4)])

    def step() -> None:
        batch = next(batches)
        with _precision(device):
            loss = loss_of(called, batch[:, :-1], batch[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def speeds(steps: list[Step], device: torch.device, tokens: int) -> list[list[float]]:
    """Tokens a second of each way to train, in each round."""
    n_steps = []
    for step in steps:
        for _ in range(3):  # caches fill, clocks rise
            step()
        started = _now(device)
        step()
        n_steps.append(max(1, round(ROUND_S[device.type] / max(_now(device) - started, 1e-3))))
    found: list[list[float]] = [[] for _ in steps]
    for _ in range(N_ROUNDS):
        for step, n, of in zip(steps, n_steps, found, strict=True):
            started = _now(device)
            for _ in range(n):
                step()
            of.append(n * tokens / (_now(device) - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit-s", type=float, default=480)
    parser.add_argument("--cases", nargs="*", metavar="NAME/SEQ_LEN")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction)
    options = parser.parse_args()
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    is_gpu = device.type == "cuda"
    compile = is_gpu if options.compile is None else options.compile
    if not is_gpu:
        torch.set_num_threads(1)
    name = torch.cuda.get_device_name() if is_gpu else platform.machine()
    peak = peak_flops(name)
    print(f"{name}, torch {torch.__version__}, {'compiled' if compile else 'not compiled'}")
    print(f"{'model':6s}{'seq':>6s}  {'':14s}{'tokens/s':>10s}{'MFU':>8s}{'of plain':>10s}")

    cases = ON_GPU if is_gpu else ON_CPU
    chosen = [c for c in cases if not options.cases or f"{c.name}/{c.seq_len}" in options.cases]
    has_transformers = importlib.util.find_spec("transformers") is not None
    works: list[tuple[Case, list[Way]]] = [(case, [plain, carbs]) for case in chosen]
    works += [(case, [transformers]) for case in chosen if has_transformers]
    longest, ceiling = 0.0, dict.fromkeys(chosen, math.nan)
    for case, ways in works:
        begun = time.monotonic()
        if begun - started + longest > options.limit_s:
            print(f"{case.name:6s}{case.seq_len:6d}  left out: more than {options.limit_s:g} s")
            continue
        steps = [way(case, device, compile=compile) for way in ways]
        rounds = speeds(steps, device, case.seq_len * case.batch_size)
        del steps
        if plain in ways:
            ceiling[case] = median(rounds[0])
        for way, found in zip(ways, rounds, strict=True):
            speed = median(found)
            share = speed / ceiling[case]
            if way is carbs:  # round by round
                share = median(ours / most for ours, most in zip(found, rounds[0], strict=True))
            flops = case.shape.flops_per_token(case.seq_len) * speed
            mfu = "-" if peak is None else f"{flops / peak:.1%}"
            row = f"{case.name:6s}{case.seq_len:6d}  {way.__name__:14s}"
            print(f"{row}{speed:10,.0f}{mfu:>8s}{share:10.3f}", flush=True)
        if is_gpu:
            used = torch.cuda.max_memory_allocated() / GIB
            expected = estimate_memory(case.config(compile=compile), case.shape, device).total / GIB
            print(f"{'':14s}{used:.1f} GiB used at the most, {expected:.1f} expected of one model")
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        torch.compiler.reset()
        longest = max(longest, time.monotonic() - begun)
    if not has_transformers:
        print("transformers is not installed: pip install transformers")


if __name__ == "__main__":
    main()
