"""The training function: what it learns, what it reports, and how it fails."""

from __future__ import annotations

import itertools
import json
import math
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from carbs.launchers.job.checkpoint import last_step
from carbs.launchers.job.files import read_curve, stop
from carbs.launchers.job.protocol import BadConfigurationError, Job, Preempted, Result, StoppedEarly
from carbs.launchers.job.sharded_checkpoint import ShardedCheckpoints
from carbs.launchers.lm import train as module
from carbs.launchers.lm.config import Config, configure
from carbs.launchers.lm.optimizer import schedule
from carbs.launchers.lm.train import train

SMALL = {"width": 32, "depth": 1, "tokens": 16_384, "batch_size": 4, "learning_rate": 0.02}

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def run(shared: Path, tmp_path: Path) -> Run:
    """Trains with some of the parameters and settings changed."""

    def run(seed: int = 0, settings: dict[str, Any] | None = None, **params: Any) -> Result:
        return train({**SMALL, **params}, Job(tmp_path, shared, seed, settings or {}))

    return run


def nll(result: Result, question_set: str) -> float:
    value = result.metrics["evaluations"][question_set]["nll_per_byte"]
    assert isinstance(value, float)
    return value


def test_a_run_reports_what_it_did(run: Run) -> None:
    result = run()
    metrics = result.metrics
    assert metrics["steps"] == 32
    assert metrics["tokens"] == 16_384
    assert metrics["n_params"] == 4 * 32**2 + 3 * 32 * 96
    assert metrics["flops"] > 6 * metrics["n_params"] * metrics["tokens"]
    assert metrics["tokens_per_second"] == pytest.approx(16_384 / result.cost)
    assert set(metrics["evaluations"]) == {"lines", "sentences", "values"}
    mean = sum(nll(result, name) for name in metrics["evaluations"]) / 3
    assert result.output == pytest.approx(mean)
    assert metrics["evaluations"]["lines"]["perplexity"] == pytest.approx(
        math.exp(nll(result, "lines"))
    )
    assert metrics["mix"] == pytest.approx({"code": 1 / 3, "prose": 1 / 3, "exercises": 1 / 3})
    assert metrics["environment"]["torch"] == torch.__version__
    assert metrics["environment"]["hostname"] == socket.gethostname()
    assert 2 < metrics["final_train_loss"] < math.log(256)
    assert json.loads(result.model_dump_json()) == result.model_dump()


def test_the_seed_decides_the_output_to_the_last_bit(run: Run) -> None:
    state = torch.get_rng_state()
    first = run(seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)  # of no matter
    assert run(seed=5).output == first.output
    assert run(seed=6).output != first.output


def test_what_is_trained_on_is_what_is_learned(run: Run) -> None:
    exercises, prose = run(mix={"exercises": 1.0}), run(mix={"prose": 1.0})
    assert nll(exercises, "values") < nll(prose, "values") - 1
    assert nll(prose, "sentences") < nll(exercises, "sentences") - 0.5


def test_more_tokens_help(run: Run) -> None:
    assert run(tokens=65_536).output < run().output - 0.3


def test_cost_is_the_time_of_training_and_grows_with_tokens(run: Run) -> None:
    run()
    short, long = run().cost, run(tokens=131_072).cost
    assert 2 < long / short < 32  # of 8: other work on the machine takes its share


def test_a_run_reports_its_progress_without_being_changed_by_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(tokens=32_768)
    curve = read_curve(tmp_path)
    assert [point.progress for point in curve] == [0.25, 0.5, 0.75]
    assert curve[0].output > curve[-1].output > result.output - 0.5
    costs = [point.cost for point in curve]
    assert 0 < costs[0] < costs[1] < costs[2] < result.cost
    monkeypatch.setattr(module, "LOOK_TOKENS", 10**9)
    assert run(tokens=32_768).output == result.output
    assert len(read_curve(tmp_path)) == 3


def test_looking_is_no_part_of_the_cost(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    look = module.QuestionSets.look

    def slow(*arguments: Any) -> float:
        clock[0] += 1000.0
        return look(*arguments)

    monkeypatch.setattr(module.QuestionSets, "look", slow)
    monkeypatch.setattr(module, "_now", lambda device: clock[0] + time.process_time())
    assert run(tokens=32_768).cost < 1000


def test_a_run_that_shall_stop_stops(run: Run, tmp_path: Path) -> None:
    stop(tmp_path)
    with pytest.raises(StoppedEarly) as stopped:
        run(tokens=32_768)
    (point,) = read_curve(tmp_path)
    assert stopped.value.cost == point.cost


class CutOffError(Exception):
    """Stands for a machine that dies."""


def cut_off_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends in the middle of the step that follows."""
    batch = module.DataMix.batch

    def until_then(self: module.DataMix, at: int, size: int) -> torch.Tensor:
        if at >= step:
            raise CutOffError
        return batch(self, at, size)

    monkeypatch.setattr(module.DataMix, "batch", until_then)


def test_a_run_that_is_cut_off_twice_ends_as_one_that_never_was(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {**SMALL, "tokens": 32_768}  # 64 steps, and reports after 16, 32 and 48
    (tmp_path / "whole").mkdir()
    whole = train(params, Job(tmp_path / "whole", shared, 3))
    # Every fifth step, so that steps are lost and one of the reports with them.
    counts = itertools.count(1)
    monkeypatch.setattr(ShardedCheckpoints, "is_due", lambda self: next(counts) % 5 == 0)
    for attempt, last in enumerate((18, 47), start=1):
        with monkeypatch.context() as dying, pytest.raises(CutOffError):
            cut_off_after(last, dying)
            train(params, attempt_at(tmp_path, shared, attempt))
        counts = itertools.count(1)
    resumed = train(params, attempt_at(tmp_path, shared, 3))
    assert resumed.metrics["checkpoints"]["resumed_at"] == 45
    assert resumed.output == whole.output
    assert resumed.metrics["final_train_loss"] == whole.metrics["final_train_loss"]
    assert resumed.metrics["evaluations"] == whole.metrics["evaluations"]
    curves = [read_curve(tmp_path / name) for name in ("whole", "3")]
    assert [(p.progress, p.output) for p in curves[1]] == [
        (p.progress, p.output) for p in curves[0]
    ]
    costs = [point.cost for point in curves[1]]
    assert costs == sorted(costs)
    assert costs[-1] < resumed.cost


def attempt_at(folder: Path, shared: Path, attempt: int) -> Job:
    (folder / str(attempt)).mkdir(exist_ok=True)
    return Job(folder / str(attempt), shared, 3, {}, folder / "checkpoints")


def test_what_a_checkpoint_holds_is_paid_for_once(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock of one second a step and ten a look: only steps cost, each of them once."""
    step, look, now = module._Training.step, module.QuestionSets.look, [0.0]

    def a_second(self: module._Training, at: int, parts: Any) -> None:
        now[0] += 1
        step(self, at, parts)

    def ten_seconds(*arguments: Any) -> float:
        now[0] += 10
        return look(*arguments)

    monkeypatch.setattr(module, "_now", lambda device: now[0])
    monkeypatch.setattr(module._Training, "step", a_second)
    monkeypatch.setattr(module.QuestionSets, "look", ten_seconds)
    for attempt, last in enumerate((7, 20), start=1):
        with monkeypatch.context() as dying, pytest.raises(Preempted, match="SIGTERM"):
            counts = itertools.count(1)
            dying.setattr(
                Job,
                "preemption",
                lambda *_, last=last, counts=counts: "SIGTERM" if next(counts) == last else None,
            )
            train(SMALL, attempt_at(tmp_path, shared, attempt))
    assert last_step(tmp_path / "checkpoints") == 27
    result = train(SMALL, attempt_at(tmp_path, shared, 3))
    assert (result.metrics["steps"], result.cost) == (32, 32.0)


def test_tokens_are_spent_in_whole_batches(run: Run) -> None:
    assert run(tokens=1).metrics["steps"] == 1
    metrics = run(tokens=1000, batch_size=3, settings={"seq_len": 64}).metrics
    assert (metrics["steps"], metrics["tokens"]) == (5, 960)


def test_micro_batches_change_the_output_by_rounding_alone(run: Run) -> None:
    whole = run(tokens=2048, batch_size=5)
    parts = run(tokens=2048, batch_size=5, settings={"micro_batch_size": 2})
    rounding = 1e-2 if torch.cuda.is_available() else 1e-4  # GPUs train in bfloat16
    assert parts.output == pytest.approx(whole.output, abs=rounding)


def test_every_parameter_has_a_default(shared: Path, tmp_path: Path) -> None:
    assert set(Config().model_dump()) >= set(SMALL)
    # Only fewer tokens, to be quick.
    assert train({"tokens": 4096}, Job(tmp_path, shared)).metrics["steps"] == 4


def test_a_huge_learning_rate_diverges(run: Run) -> None:
    with pytest.raises(BadConfigurationError, match=r"diverged: .* at step \d+ of 32") as caught:
        run(learning_rate=1e4)
    assert caught.value.cost is not None
    assert 0 < caught.value.cost < 10


def test_a_loss_that_stays_finite_but_rises_diverges(run: Run) -> None:
    with pytest.raises(BadConfigurationError, match=r"diverged: loss is \d.* of 32"):
        run(learning_rate=10.0)


def test_a_loss_that_is_not_finite_diverges(run: Run) -> None:
    with pytest.raises(BadConfigurationError, match=r"diverged: .*(nan|inf)"):
        run(learning_rate=1e38, tokens=1)


def test_running_out_of_memory_is_the_configurations_fault(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(module.DataMix, "batch", exhausted)
    expected = r"out of memory: width 32, .* GiB were expected, .* GiB were used at the most"
    with pytest.raises(BadConfigurationError, match=expected) as caught:
        run()
    assert caught.value.cost is not None


def test_other_errors_are_passed_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(module.DataMix, "batch", broken)
    with pytest.raises(RuntimeError, match="disk"):
        run()


@pytest.mark.parametrize(
    ("params", "settings", "named"),
    [
        ({"lr": 0.1}, {}, "unknown parameter 'lr'; there are width, depth, head_width"),
        ({}, {"sequence": 1}, "unknown setting 'sequence'; there are width"),
        ({"tokens": 0}, {}, "parameter 'tokens'"),
        ({"width": 33}, {}, "width must be"),
        ({"depth": 1.5}, {}, "parameter 'depth'"),
        ({"mix": {"code": 0.5}}, {}, "sum to 0.5"),
        ({"mix": {"cod": 1.0}}, {}, "'cod'"),
        ({}, {"data": {"novels": "builtin"}}, "'novels'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    run: Run, params: dict[str, Any], settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=named):
        run(settings=settings, **params)


def test_ones_own_data_and_questions(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for i in range(12):
        lines = [f"The line that is numbered {j} in file {i}.\n" for j in range(20)]
        (tmp_path / "mine" / f"{i}.txt").write_text("".join(lines))
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "in file", "choices": [" 3", " x"], "answer": 0}\n')
    data = {"mine": str(tmp_path / "mine")}
    made = run(settings={"data": data})
    assert set(made.metrics["evaluations"]) == {"mine"}
    assert made.metrics["mix"] == {"mine": 1.0}
    added = run(settings={"data": data, "questions": {"files": asked}})
    assert added.output == pytest.approx((nll(added, "mine") + nll(added, "files")) / 2)
    assert nll(added, "mine") == made.output
    replaced = run(settings={"data": data, "questions": {"mine": str(asked)}})
    assert replaced.output == nll(added, "files")


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    config = Config(warmup_fraction=0.1)
    shares = [schedule(step, 100, config) for step in range(100)]
    assert shares[:11] == sorted(shares[:11])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert max(shares) == shares[10] == 1.0
    assert 0 < shares[-1] < 0.02
    assert 0 < shares[0] < 0.1
    assert schedule(0, 1, Config(warmup_fraction=0.5)) > 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (Config(schedule="cosine", warmup_fraction=0), {0: 1, 25: 0.8536, 50: 0.5, 75: 0.1464}),
        (Config(schedule="wsd", warmup_fraction=0.1), {10: 1, 80: 1, 90: 0.5, 99: 0.05}),
        (Config(schedule="wsd", decay_fraction=1, warmup_fraction=0.1), {10: 1, 55: 0.5}),
        (Config(final_fraction=0.1, warmup_fraction=0), {0: 1, 50: 0.55}),
    ],
)
def test_the_learning_rate_follows_its_schedule(config: Config, expected: dict[int, float]) -> None:
    shares = {step: schedule(step, 100, config) for step in expected}
    assert shares == pytest.approx(expected, abs=1e-4)


def test_a_parameter_or_a_setting_or_a_dotted_name() -> None:
    config = configure(
        {"width": 128, "mix.code": 0.75}, {"width": 64, "depth": 3, "mix": {"code": 0.5, "b": 0.25}}
    )
    assert (config.width, config.depth, config.tokens) == (128, 3, Config().tokens)
    assert config.mix == {"code": 0.75, "b": 0.25}
    assert configure({"mix.code": 1.0}, {}).mix == {"code": 1.0}
    with pytest.raises(ValueError, match=r"setting 'mix\.code'"):
        configure({}, {"mix.code": "much"})


def test_a_batch_may_be_said_in_tokens() -> None:
    config = Config(batch_tokens=4000, seq_len=128, tokens=40_000)
    assert (config.sequences, config.steps) == (31, 10)
    with pytest.raises(ValueError, match="batch_tokens is 10, less than a sequence"):
        configure({"batch_tokens": 10}, {})
