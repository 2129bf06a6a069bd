"""Every field of the reference job's configuration, on one screen.

Each may be a parameter of the sweep, or stand in the ``settings`` of its file, or keep its default.
A dotted name is a field of a field: ``mix.code``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from carbs.launchers.job.checkpoint import EVERY_S
from carbs.launchers.job.distributed import TIMEOUT_S
from carbs.launchers.lm.data.builtin import COMPONENTS
from carbs.launchers.lm.data.sources import BUILTIN, Source
from carbs.launchers.lm.data.tokenizer import BYTES
from carbs.launchers.lm.model import N_BYTES, ModelConfig


class Config(BaseModel):
    """What is trained, on what, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # The model.
    width: int = 64  # of the residual stream
    depth: int = 2  # blocks
    head_width: int | None = None  # 64 where it divides the width; otherwise 32 or 16
    mlp_ratio: float = Field(default=8 / 3, gt=0)  # hidden width over width, to a multiple of 16
    tied_embeddings: bool = False  # one matrix at both ends
    dropout: float = Field(default=0.0, ge=0, lt=1)  # of the embedding and of each branch
    init_scale: float = Field(default=1.0, gt=0)  # times every initial standard deviation
    parametrization: Literal["standard", "mup"] = "standard"
    base_width: int = Field(default=64, ge=1)  # the shape at which both parametrizations agree
    base_depth: int = Field(default=2, ge=1)

    # The optimizer.
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: for the blocks, and adamw for the ends
    learning_rate: float = Field(default=0.01, gt=0)  # at the end of the warm-up
    weight_decay: float = Field(default=0.1, ge=0)  # times the learning rate, at each step
    beta1: float = Field(default=0.9, ge=0, lt=1)  # AdamW's
    beta2: float = Field(default=0.95, ge=0, lt=1)
    momentum: float = Field(default=0.95, ge=0, lt=1)  # Muon's
    clip_norm: float = Field(default=1.0, gt=0)  # of the gradient
    schedule: Literal["linear", "cosine", "wsd"] = "linear"  # wsd: warm-up, stable, decay
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)  # of the steps
    decay_fraction: float = Field(default=0.2, gt=0, le=1)  # of the steps, under wsd
    final_fraction: float = Field(default=0.0, ge=0, le=1)  # of the learning rate, at the end

    # The data.
    tokens: int = Field(default=262_144, ge=1)  # to train on, to the nearest whole batch
    batch_size: int = Field(default=8, ge=1)  # sequences
    batch_tokens: int | None = Field(default=None, ge=1)  # in place of batch_size
    seq_len: int = Field(default=128, ge=1)  # tokens
    # A folder or glob for each component, or a Source, which says more of it.
    data: dict[str, str | Source] = dict.fromkeys(COMPONENTS, BUILTIN)
    tokenizer: str = BYTES  # or a file of the tokenizers library
    mix: dict[str, float] | None = None  # share of each component; equal shares by default
    mid_mix: dict[str, float] | None = None  # of a second phase (mid-training), if there is one
    mid_start: float = Field(default=0.8, ge=0, le=1)  # share of the tokens before that begins
    max_epochs: float | None = Field(default=None, gt=0)  # over any component; more is refused
    contamination: bool = True  # whether to measure it, once: all training text is read for it

    # The questions.
    questions: dict[str, Path] = {}  # JSON Lines files, beside the sets made of the data
    weights: dict[str, float] = {}  # of question sets in the objective; 1 by default
    sealed: dict[str, Path] = {}  # questions whose scores nobody sees before `carbs unseal`

    # The machine. None of these changes what is learned, but for rounding.
    micro_batch_size: int = Field(default=16, ge=1)  # sequences at once: bounds the memory
    parallel: Literal["ddp", "fsdp"] = "ddp"  # of several tasks: whole copies, or shards
    compile: bool | None = None  # torch.compile; by default on a GPU alone
    threads: int | None = Field(default=None, ge=1)  # of the CPU; by default those that Slurm gives
    skip_spikes: bool = False  # whether a batch whose loss jumps up counts for nothing
    checkpoint_every_s: float = Field(default=EVERY_S, ge=0)
    task_timeout_s: float = Field(default=TIMEOUT_S, gt=0)  # that one task waits for another

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        self.shape()  # one that cannot be raises
        if self.batch_tokens is not None and self.batch_tokens < self.seq_len / 2:
            raise ValueError(
                f"batch_tokens is {self.batch_tokens}, less than a sequence (seq_len "
                f"{self.seq_len}): raise it, or lower seq_len"
            )
        return self

    def shape(self, vocab_size: int = N_BYTES) -> ModelConfig:
        """The model's."""
        own = {field.name for field in fields(ModelConfig)} & type(self).model_fields.keys()
        return ModelConfig(vocab_size=vocab_size, **{name: getattr(self, name) for name in own})

    @cached_property
    def sequences(self) -> int:
        """Sequences in a batch."""
        if self.batch_tokens is None:
            return self.batch_size
        return max(1, round(self.batch_tokens / self.seq_len))

    @cached_property
    def steps(self) -> int:
        """Batches in the run."""
        return max(1, round(self.tokens / (self.sequences * self.seq_len)))


def configure(params: Mapping[str, Any], settings: Mapping[str, Any]) -> Config:
    """The configuration of a run: its parameters, then the sweep's settings, then the defaults.

    Args:
        params: values by the names of fields, dotted for what lies inside of one.
        settings: the same. Where both name a field, the parameter counts.

    Raises:
        ValueError: a name is unknown or a value impossible. The message names it.
    """
    values: dict[str, Any] = {}
    for source in (settings, params):
        for name in sorted(source, key=lambda name: name.count(".")):  # the whole before its parts
            _put(values, name.split("."), source[name])
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        place = [str(part) for part in problem["loc"]]
        if not place:
            raise ValueError(problem["msg"].removeprefix("Value error, ")) from error
        is_param = any(name.split(".")[0] == place[0] for name in params)
        kind, name = "parameter" if is_param else "setting", ".".join(place)
        if problem["type"] == "extra_forbidden":
            known = ", ".join(Config.model_fields)
            raise ValueError(f"unknown {kind} {name!r}; there are {known}") from error
        raise ValueError(f"{kind} {name!r}: {problem['msg']}") from error


def _put(values: dict[str, Any], place: list[str], value: Any) -> None:
    name, *rest = place
    if not rest:
        values[name] = value
        return
    inner = values.get(name)
    values[name] = dict(inner) if isinstance(inner, Mapping) else {}
    _put(values[name], rest, value)
