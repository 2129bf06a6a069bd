"""A job that is cut off goes on from its newest readable checkpoint."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carbs.launchers.job.checkpoint import Checkpoints, last_step
from carbs.launchers.job.files import Finished, JobFile, read_curve, read_report, write_job
from carbs.launchers.job.protocol import CurvePoint, Job, Preempted
from carbs.launchers.job.runner import run


@pytest.fixture
def new_job(tmp_path: Path) -> Callable[..., Job]:
    """Another attempt at the same trial."""

    def new_job(name: str = "1", **fields: Any) -> Job:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Job(folder, tmp_path, checkpoint_folder=tmp_path / "checkpoints", **fields)

    return new_job


def state(value: int, size: int = 1000) -> dict[str, Any]:
    return {"weights": torch.full((size,), float(value)), "cost": value / 2}


def files(job: Job) -> list[Path]:
    return sorted(job.checkpoint_folder.iterdir())


def test_the_first_attempt_has_nothing_to_go_on_from(new_job: Callable[..., Job]) -> None:
    assert Checkpoints(new_job()).load() == (0, None)
    assert last_step(new_job().checkpoint_folder) == 0


def test_the_next_attempt_gets_the_newest_and_two_are_kept(new_job: Callable[..., Job]) -> None:
    checkpoints = Checkpoints(new_job("1"))
    for step in (10, 9_999, 100_000_000):
        assert checkpoints.save(step, state(step))
    assert checkpoints.n_written == 3
    assert len(files(new_job())) == 2
    step, found = Checkpoints(new_job("2")).load()
    assert step == last_step(new_job().checkpoint_folder) == 100_000_000
    assert found is not None
    assert torch.equal(found["weights"], state(step)["weights"])
    assert found["cost"] == step / 2


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    """In the middle of the weights, where the format itself would not notice."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path: Path) -> None:
    """A file that is whole, and another's."""
    torch.save({"step": 10**6, "curve": [], "state": {}}, path)


@pytest.mark.parametrize("spoil", [cut, flip_a_bit, swap, lambda path: path.write_bytes(b"")])
def test_a_spoiled_checkpoint_is_skipped_and_said_so(
    new_job: Callable[..., Job], spoil: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(new_job())
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    newest = files(new_job())[-1]
    spoil(newest)
    next_one = Checkpoints(new_job("2"))
    step, found = next_one.load()
    assert step == 1
    assert found is not None
    assert found["weights"][0] == 1
    assert len(next_one.skipped) == 1
    assert f"{newest} is skipped: " in capsys.readouterr().out
    # It does not take the place of a good one.
    next_one.save(3, state(3))
    assert [last_step(path.parent) for path in files(new_job())] == [3, 3]
    spoil(files(new_job())[-1])
    assert Checkpoints(new_job("3")).load()[0] == 1


def test_where_all_are_spoiled_the_run_begins_anew(new_job: Callable[..., Job]) -> None:
    checkpoints = Checkpoints(new_job())
    for step in (1, 2):
        checkpoints.save(step, state(step))
    for path in files(new_job()):
        cut(path)
    last = Checkpoints(new_job("2"))
    assert last.load() == (0, None)
    assert len(last.skipped) == 2


def test_a_state_that_could_not_be_read_again_is_refused_at_once(
    new_job: Callable[..., Job],
) -> None:
    checkpoints = Checkpoints(new_job())
    with pytest.raises(TypeError, match=r"plain Python values only.* needs numpy\..*scalar"):
        checkpoints.save(1, {"loss": np.float64(1.0)})
    assert files(new_job()) == []


@contextmanager
def disk_that_holds(n_bytes: int) -> Iterator[None]:
    """Writing more into a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("n_bytes", [0, 3_000, 5_000])
def test_a_full_disk_costs_neither_the_run_nor_the_older_checkpoint(
    new_job: Callable[..., Job], n_bytes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(new_job(), every_s=0)
    checkpoints.after_step(1, lambda: state(1))
    with disk_that_holds(n_bytes):
        checkpoints.after_step(2, lambda: state(2))
    assert "step 2 could not be written, the run goes on" in capsys.readouterr().out
    assert len(checkpoints.failures) == 1
    # Nothing half-written is left to fill the disk.
    assert len(files(new_job())) == 1
    assert Checkpoints(new_job("2")).load()[0] == 1
    checkpoints.after_step(3, lambda: state(3))
    assert Checkpoints(new_job("2")).load()[0] == 3


def test_a_folder_that_cannot_be_made_costs_the_run_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    job = Job(tmp_path, tmp_path, checkpoint_folder=tmp_path / "file" / "checkpoints")
    checkpoints = Checkpoints(job)
    assert not checkpoints.save(1, state(1))
    assert len(checkpoints.failures) == 1


def test_attempts_that_overlap_do_not_spoil_each_other(new_job: Callable[..., Job]) -> None:
    """The orphan, ahead, and its copy write in turns; at any time the newest is readable."""
    orphan, copy = Checkpoints(new_job("1")), Checkpoints(new_job("1"))
    for step in range(1, 9):
        orphan.save(step + 4, {**state(step + 4), "by": "orphan"})
        copy.save(step, {**state(step), "by": "copy"})
        found_step, found = Checkpoints(new_job("2")).load()
        assert found_step == step + 4
        assert found is not None
        assert found["by"] == "orphan"
    assert not any(path.suffix != ".pt" for path in files(new_job()))


def test_a_checkpoint_that_is_removed_while_it_is_sought_is_followed_by_newer_ones(
    new_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    orphan = Checkpoints(new_job("1"))
    orphan.save(1, state(1))
    opened, to_write = Path.open, [2, 3, 4]

    def open_too_late(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.suffix == ".pt":
            while to_write:
                orphan.save(to_write.pop(0), state(0))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_too_late)
    copy = Checkpoints(new_job("2"))
    assert copy.load()[0] == 4
    assert copy.skipped == []


def test_a_writer_that_is_killed_leaves_the_older_checkpoint(
    new_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any moment up to the rename, there is no new checkpoint, and then there is a whole one."""
    checkpoints = Checkpoints(new_job())
    checkpoints.save(1, state(1))
    seen: list[int] = []
    fsync, replace = os.fsync, Path.replace

    def look(*arguments: Any) -> None:
        seen.append(Checkpoints(new_job("2")).load()[0])

    monkeypatch.setattr(os, "fsync", lambda fd: (look(), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (look(), replace(a, b))[1])
    checkpoints.save(2, state(2))
    # Before the bytes are safe, before the file has its name, and before the name is safe.
    assert seen == [1, 1, 2]


def test_what_a_killed_writer_left_is_removed_once_it_is_old(new_job: Callable[..., Job]) -> None:
    checkpoints = Checkpoints(new_job())
    checkpoints.save(1, state(1))
    fresh, old = (new_job().checkpoint_folder / f"{name}.unfinished" for name in ("fresh", "old"))
    for path in (fresh, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 86_400,) * 2)
    checkpoints.save(2, state(2))
    assert fresh.exists()
    assert not old.exists()


def test_no_checkpoint_is_written_before_it_is_due(new_job: Callable[..., Job]) -> None:
    checkpoints = Checkpoints(new_job())
    checkpoints.after_step(1, lambda: pytest.fail("asked for a state that is not needed"))
    assert not new_job().checkpoint_folder.exists()


def test_a_request_is_answered_by_a_checkpoint_and_the_end(new_job: Callable[..., Job]) -> None:
    job = new_job()
    checkpoints = Checkpoints(job)
    assert not job.should_checkpoint()
    job.request_checkpoint("SIGUSR2")
    assert job.should_checkpoint()
    with pytest.raises(Preempted, match="SIGUSR2"):
        checkpoints.after_step(7, lambda: state(7))
    assert Checkpoints(new_job("2")).load()[0] == 7


@pytest.mark.parametrize(
    ("ran_for_s", "left_s", "is_asked"),
    [(1000, 61, False), (1000, 59, True), (50, 8, False), (50, 5, True), (0, 60, False)],
)
def test_the_deadline_asks_for_a_checkpoint(
    new_job: Callable[..., Job], ran_for_s: float, left_s: float, is_asked: bool
) -> None:
    now = time.time()
    job = new_job(deadline=now + left_s, started=now - ran_for_s)
    assert job.should_checkpoint() == is_asked


def test_the_learning_curve_goes_on_where_the_checkpoint_was(new_job: Callable[..., Job]) -> None:
    first = new_job("1")
    first.report(0.2, output=5, cost=1)
    Checkpoints(first).save(1, state(1))
    first.report(0.4, output=4, cost=2)
    # Requeued into the same folder, or begun again in another.
    for job in (first, new_job("2")):
        Checkpoints(job).load()
        job.report(0.4, output=4, cost=3)
        assert read_curve(job.folder) == [
            CurvePoint(progress=0.2, output=5, cost=1),
            CurvePoint(progress=0.4, output=4, cost=3),
        ]


def test_of_two_attempts_in_one_folder_the_last_word_counts(new_job: Callable[..., Job]) -> None:
    orphan, copy = new_job("1"), new_job("1")
    orphan.report(0.5, output=4, cost=2)
    copy.report(0.25, output=5, cost=1)
    orphan.report(0.75, output=3, cost=3)
    copy.report(0.5, output=4, cost=2)
    assert [point.progress for point in read_curve(copy.folder)] == [0.25, 0.5]


TRAINING = """
import torch
from carbs.launchers.job.checkpoint import Checkpoints

def train(params, job):
    checkpoints = Checkpoints(job)
    start, state = checkpoints.load()
    weights = state["weights"] if state else torch.zeros(3)
    for step in range(start, params["steps"]):
        weights = weights + step
        (job.folder / "running").touch()
        {then}
        checkpoints.after_step(step + 1, lambda: {{"weights": weights}})
    return {{"output": weights[0].item(), "cost": 1, "metrics": {{"start": start}}}}
"""


def write(tmp_path: Path, then: str, steps: int = 5) -> Path:
    name = f"training_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(TRAINING.format(then=then))
    job_file = JobFile(
        function=f"{name}:train",
        python_path=[str(tmp_path)],
        params={"steps": steps},
        seed=0,
        settings={},
        shared_folder=tmp_path,
        checkpoint_folder=tmp_path / "checkpoints",
    )
    write_job(tmp_path / "job", job_file)
    return tmp_path / "job"


def start(folder: Path) -> subprocess.Popen[str]:
    code = f"from carbs.launchers.job.runner import run; print('ended', run({str(folder)!r}))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_a_job_of_ones_own_that_is_preempted_goes_on_where_it_was(
    tmp_path: Path, number: signal.Signals, wait_until: Callable[..., None]
) -> None:
    waiting = "while step == 2 and not state and not job.should_checkpoint(): "
    folder = write(tmp_path, waiting + '(job.folder / "waiting").touch()')
    process = start(folder)
    wait_until((folder / "waiting").exists, "the job to come to its third step")
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "ended False" in output
    assert read_report(folder) is None
    assert last_step(tmp_path / "checkpoints") == 3
    process = start(folder)
    output, _ = process.communicate(timeout=120)
    assert "ended True" in output
    report = read_report(folder)
    assert isinstance(report, Finished)
    assert report.result.output == 0 + 1 + 2 + 3 + 4
    assert report.result.metrics["start"] == 3
    # A result needs no checkpoint.
    assert not (tmp_path / "checkpoints").exists()


def test_a_job_with_a_result_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = write(tmp_path, "pass")
    assert run(str(folder))
    (folder / "running").unlink()
    before = json.loads((folder / "report.json").read_text())
    assert run(str(folder))
    assert not (folder / "running").exists()
    assert json.loads((folder / "report.json").read_text()) == before
