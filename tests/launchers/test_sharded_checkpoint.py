"""Checkpoints in folders: what is read is what was written, or an older one, or nothing."""

from __future__ import annotations

import json
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from carbs.launchers.job.checkpoint import last_step
from carbs.launchers.job.distributed import World
from carbs.launchers.job.files import read_curve
from carbs.launchers.job.protocol import CurvePoint, Job, Preempted
from carbs.launchers.job.sharded_checkpoint import ShardedCheckpoints

ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[..., ShardedCheckpoints]:
    """Another attempt at the same trial."""

    def attempt(name: str = "1", **options: Any) -> ShardedCheckpoints:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        job = Job(folder, tmp_path, checkpoint_folder=tmp_path / "checkpoints")
        return ShardedCheckpoints(job, ALONE, **options)

    return attempt


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((30, 40), value), "step": torch.tensor(value)}


def write(checkpoints: ShardedCheckpoints, *steps: int) -> None:
    for step in steps:
        checkpoints.save(step, tensors(step), {"cost": step / 3})
    checkpoints.finish()


def read(checkpoints: ShardedCheckpoints) -> tuple[int, float, float]:
    found = tensors(-1)
    step, state = checkpoints.load(found)
    assert state is not None
    assert (found["weights"] == found["step"]).all()
    return step, found["step"].item(), state["cost"]


def folders(checkpoints: ShardedCheckpoints) -> list[Path]:
    return sorted(checkpoints.job.checkpoint_folder.iterdir())


Attempt = Callable[..., ShardedCheckpoints]


def test_the_first_attempt_has_nothing_to_go_on_from(attempt: Attempt) -> None:
    found = tensors(5)
    assert attempt().load(found) == (0, None)
    assert torch.equal(found["weights"], tensors(5)["weights"])


def test_the_next_attempt_gets_the_newest_and_two_are_kept(attempt: Attempt) -> None:
    first = attempt()
    first.job.report(0.5, output=3, cost=2)
    write(first, 10, 9_999, 100_000_000)
    assert first.n_written == 3
    assert len(folders(first)) == 2
    second = attempt("2")
    assert last_step(second.job.checkpoint_folder) == 100_000_000
    assert read(second) == (100_000_000, 1e8, 1e8 / 3)
    assert read_curve(second.job.folder) == [CurvePoint(progress=0.5, output=3, cost=2)]


def flip_a_bit(folder: Path) -> None:
    (path,) = folder.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def forget_a_shard(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def change_the_state(folder: Path) -> None:
    path = folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 7}))


def make_a_file_of_it(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("what an older version may have left")


@pytest.mark.parametrize("spoil", [flip_a_bit, forget_a_shard, change_the_state, make_a_file_of_it])
def test_a_spoiled_checkpoint_is_skipped_and_said_so(
    attempt: Attempt, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    write(attempt(), 1, 2)
    newest = folders(attempt())[-1]
    spoil(newest)
    second = attempt("2")
    assert read(second)[0] == 1
    assert len(second.skipped) == 1
    assert f"{newest} is skipped: " in capsys.readouterr().out
    # It does not take the place of a good one.
    write(second, 3)
    spoil(folders(second)[-1])
    assert read(attempt("3"))[0] == 1


def test_one_of_another_shape_is_skipped(attempt: Attempt) -> None:
    write(attempt(), 1)
    second = attempt("2")
    assert second.load({"weights": torch.zeros(3, 3)}) == (0, None)
    assert len(second.skipped) == 1


@contextmanager
def disk_that_holds(n_bytes: int) -> Iterator[None]:
    """Writing more into a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("n_bytes", [0, 3_000])
def test_a_full_disk_costs_neither_the_run_nor_the_older_checkpoint(
    attempt: Attempt, n_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = attempt()
    write(checkpoints, 1)
    with disk_that_holds(n_bytes):
        write(checkpoints, 2)
    assert "step 2 could not be written, the run goes on" in capsys.readouterr().out
    assert len(checkpoints.failures) == 1
    # Nothing half-written is left to fill the disk.
    assert len(folders(checkpoints)) == 1
    assert read(attempt("2"))[0] == 1
    write(checkpoints, 3)
    assert read(attempt("2"))[0] == 3


def test_training_goes_on_while_one_is_written(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written are the tensors as they were when it began."""
    may_write, write_data = threading.Event(), HuggingFaceStorageWriter.write_data

    def later(*arguments: Any) -> Any:
        assert may_write.wait(60)
        return write_data(*arguments)

    monkeypatch.setattr(HuggingFaceStorageWriter, "write_data", later)
    checkpoints = attempt()
    weights = tensors(1)
    checkpoints.save(1, weights, {"cost": 1 / 3})
    for tensor in weights.values():
        tensor.fill_(2)
    assert last_step(checkpoints.job.checkpoint_folder) == 0
    may_write.set()
    checkpoints.finish()
    assert read(attempt("2")) == (1, 1, 1 / 3)


def test_a_request_is_answered_by_a_checkpoint_and_the_end(attempt: Attempt) -> None:
    checkpoints = attempt()
    checkpoints.after_step(6, lambda: pytest.fail("asked for a state that is not needed"))
    checkpoints.job.request_checkpoint("SIGUSR2")
    with pytest.raises(Preempted, match="SIGUSR2"):
        checkpoints.after_step(7, lambda: (tensors(7), {"cost": 1.0}))
    assert read(attempt("2")) == (7, 7, 1.0)
