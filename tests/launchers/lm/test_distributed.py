"""Several tasks train one model as one would, and none waits for ever for another."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from carbs.launchers.job.checkpoint import last_step
from carbs.launchers.job.distributed import meeting_place
from carbs.launchers.job.environment import task
from carbs.launchers.job.files import (
    Failed,
    Finished,
    JobFile,
    JobReport,
    Stopped,
    read_curve,
    read_report,
    stop,
    write_job,
)

SMALL: dict[str, Any] = {
    "width": 32,
    "depth": 1,
    "tokens": 20_480,
    "batch_size": 4,
    "learning_rate": 0.02,
}


@pytest.fixture
def new_job(tmp_path: Path) -> Callable[..., Path]:
    """A job of the reference function, or one around it, on a text of this test's own."""
    (tmp_path / "text").mkdir()
    for i in range(12):
        lines = [f"The line that is numbered {j} in file {i}.\n" for j in range(40)]
        (tmp_path / "text" / f"{i}.txt").write_text("".join(lines))

    def new_job(name: str, around: str = "", **settings: Any) -> Path:
        function = "carbs.launchers.lm.train:train"
        if around:
            source = "from carbs.launchers.job.environment import task\n"
            source += "from carbs.launchers.lm import train as module\n"
            (tmp_path / f"around_{name}.py").write_text(source + around)
            function = f"around_{name}:train"
        job_file = JobFile(
            function=function,
            python_path=[str(tmp_path)],
            params={name: value for name, value in SMALL.items() if name not in settings},
            seed=3,
            settings={"data": {"mine": str(tmp_path / "text")}, "seq_len": 64, **settings},
            shared_folder=tmp_path / "shared",
            checkpoint_folder=tmp_path / "checkpoints" / name,
        )
        write_job(tmp_path / name, job_file)
        return tmp_path / name

    return new_job


# A process that has imported what takes seconds, and forks for each task.
TASKS = multiprocessing.get_context("forkserver")
TASKS.set_forkserver_preload(["torch._dynamo", "carbs.launchers.lm.train"])


def start(folder: Path, n: int = 2) -> list[ForkServerProcess]:
    """The job's tasks, as srun starts them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tasks = []
    for rank in range(n):
        environment = {
            "CUDA_VISIBLE_DEVICES": "",
            "SLURM_PROCID": str(rank),
            "SLURM_STEP_NUM_TASKS": str(n),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        code = (
            f"import os; os.environ.update({environment})\n"
            f"from carbs.launchers.job.runner import run; run({str(folder)!r})"
        )
        tasks.append(TASKS.Process(target=exec, args=(code,)))
        tasks[-1].start()
    return tasks


def run(folder: Path, n: int = 2) -> JobReport | None:
    for process in start(folder, n):
        process.join(300)
        assert process.exitcode == 0
    return read_report(folder)


def preempted_at(step: int) -> str:
    """Around the reference function: the machine is taken away at a step."""
    return f"""
def train(params, job):
    batch = module.DataMix.batch
    def asking(self, step, size):
        if step == {step} and task()[0] == 0:
            job.request_checkpoint("a test")
        return batch(self, step, size)
    module.DataMix.batch = asking
    return module.train(params, job)
"""


def undisturbed(folder: Path) -> None:
    """The next attempt runs the function itself."""
    job_file = json.loads((folder / "job.json").read_text())
    job_file["function"] = "carbs.launchers.lm.train:train"
    (folder / "job.json").write_text(json.dumps(job_file))


def test_two_tasks_train_as_one_does_and_go_on_as_one_does(
    new_job: Callable[..., Path], tmp_path: Path
) -> None:
    """To the last bit where one adds up its gradients in the same parts, whole or resumed."""
    alone = run(new_job("alone", micro_batch_size=SMALL["batch_size"] // 2), n=1)
    both = run(new_job("both"))
    assert isinstance(alone, Finished)
    assert isinstance(both, Finished)
    assert both.result.output == alone.result.output
    losses = [r.result.metrics["final_train_loss"] for r in (alone, both)]
    assert losses[1] == losses[0]
    assert [p.progress for p in read_curve(tmp_path / "both")] == [
        p.progress for p in read_curve(tmp_path / "alone")
    ]
    folder = new_job("preempted", preempted_at(30))
    assert run(folder) is None
    assert last_step(tmp_path / "checkpoints" / "preempted") == 31
    undisturbed(folder)
    resumed = run(folder)
    assert isinstance(resumed, Finished)
    assert resumed.result.metrics["checkpoints"]["resumed_at"] == 31
    assert resumed.result.output == both.result.output
    assert resumed.result.metrics["final_train_loss"] == losses[1]


@pytest.mark.parametrize(
    ("optimizer", "ways", "n_steps"), [("adamw", ["ddp", "fsdp"], 64), ("muon", ["fsdp"], 16)]
)
def test_shards_train_as_the_whole_does_and_one_task_reads_what_two_wrote(
    new_job: Callable[..., Path], tmp_path: Path, optimizer: str, ways: list[str], n_steps: int
) -> None:
    """Of an odd batch, with dropout and one matrix at both ends; 64 steps have a look in them.

    The checkpoint is written right after it, when FSDP has some weights whole.
    """
    last = n_steps // 2 - 1
    rounding = 1e-3 if optimizer == "muon" else 1e-4  # Muon computes in bfloat16
    settings = {
        "batch_size": 5,
        "tokens": n_steps * 5 * 64,
        "dropout": 0.1,
        "tied_embeddings": True,
        "optimizer": optimizer,
        "learning_rate": 0.005,
    }
    alone = run(new_job("alone", **settings), n=1)
    assert isinstance(alone, Finished)
    for how in ways:
        folder = new_job(how, preempted_at(last), parallel=how, micro_batch_size=2, **settings)
        assert run(folder) is None
        assert last_step(tmp_path / "checkpoints" / how) == last + 1
        undisturbed(folder)
        resumed = run(folder, n=1)
        assert isinstance(resumed, Finished)
        assert resumed.result.metrics["checkpoints"]["resumed_at"] == last + 1
        assert resumed.result.output == pytest.approx(alone.result.output, abs=rounding)
        looks = [[p.output for p in read_curve(tmp_path / name)] for name in ("alone", how)]
        assert looks[1] == pytest.approx(looks[0], abs=1e-4)
        assert len(looks[1]) == n_steps // 64


def test_shards_in_bfloat16_turn_by_exact_angles() -> None:
    """As on a GPU, where weights are gathered in bfloat16."""
    code = """
import os, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from carbs.launchers.lm import model as module
from carbs.launchers.lm.parallel import precision
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
model = module.Transformer(module.ModelConfig(16, 1), torch.Generator().manual_seed(0))
for part in (*model.blocks, model):
    fully_shard(part, mp_policy=precision(torch.device("cuda")))
rotate, seen = module._rotate, []
def seeing(x, rotation):
    seen.append((x.dtype, rotation[0].dtype))
    return rotate(x, rotation)
module._rotate = seeing
model(torch.zeros(1, 4, dtype=torch.long))
assert seen == [(torch.bfloat16, torch.float32)], seen
"""
    process = TASKS.Process(target=exec, args=(code, {}))
    process.start()
    process.join(300)
    assert process.exitcode == 0


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_tasks_share_the_questions(new_job: Callable[..., Path], tmp_path: Path, how: str) -> None:
    asked = [
        {"prompt": f"{'The line that ' * (i % 9)}", "choices": [f"is {i}.", "was"], "answer": i % 2}
        for i in range(200)
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    questions = {"asked": str(tmp_path / "asked.jsonl")}
    counting = """
def train(params, job):
    ask, forward, n = module.QuestionSets.ask, module.Transformer.forward, []
    def counted(self, *arguments, **options):
        n.append(self)
        return forward(self, *arguments, **options)
    def asking(self, model):
        n.clear()
        found = ask(self, model)
        (job.folder / f"forwards-{task()[0]}").write_text(str(len(n)))
        return found
    module.Transformer.forward, module.QuestionSets.ask = counted, asking
    return module.train(params, job)
"""
    reports, forwards = [], []
    for name, n in (("alone", 1), ("both", 2)):
        folder = new_job(name, counting, tokens=1024, parallel=how, questions=questions)
        report = run(folder, n)
        assert isinstance(report, Finished)
        reports.append(report.result)
        forwards.append([int(path.read_text()) for path in folder.glob("forwards-*")])
    (whole,), halves = forwards
    assert whole >= 5 and halves[0] == halves[1] <= whole // 2 + 1
    assert reports[1].output == pytest.approx(reports[0].output, abs=1e-4)
    for name in ("mine", "asked"):
        alone, both = (report.metrics["evaluations"][name] for report in reports)
        assert both == pytest.approx(alone, abs=1e-4)
    alone, both = (report.metrics["held_out_bits_per_byte"] for report in reports)
    assert both == pytest.approx(alone, abs=1e-4)


def test_all_tasks_stop_when_the_first_is_told_to(new_job: Callable[..., Path]) -> None:
    folder = new_job("stopped")
    stop(folder)
    assert isinstance(run(folder), Stopped)
    assert len(read_curve(folder)) == 1


def test_the_task_that_failed_gives_the_reason(new_job: Callable[..., Path]) -> None:
    failing = """
def train(params, job):
    step = module.torch.optim.AdamW.step
    def failing(*arguments, **options):
        if task()[0] == 1:
            raise RuntimeError("uncorrectable ECC error")
        return step(*arguments, **options)
    module.torch.optim.AdamW.step = failing
    return module.train(params, job)
"""
    report = run(new_job("failed", failing))
    assert isinstance(report, Failed)
    assert report.reason == "RuntimeError: uncorrectable ECC error"


def test_a_task_that_hangs_is_not_waited_for_for_ever(
    new_job: Callable[..., Path], wait_until: Callable[..., None]
) -> None:
    endless = """
def train(params, job):
    batch = module.DataMix.batch
    def endless(self, step, size):
        if step == 3:
            (job.folder / f"running-{task()[0]}").touch()
        return batch(self, step, size)
    module.DataMix.batch = endless
    return module.train({**params, "tokens": 10**8}, job)
"""
    folder = new_job("lost", endless, task_timeout_s=3)
    first, second = start(folder)
    running = [folder / f"running-{rank}" for rank in range(2)]
    wait_until(lambda: all(path.exists() for path in running), "both tasks to train")
    assert second.pid is not None
    os.kill(second.pid, signal.SIGSTOP)
    first.join(120)
    second.kill()
    second.join()
    report = read_report(folder)
    assert isinstance(report, Failed)
    assert report.reason.startswith("TaskLostError: ")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        # In a batch script, which is no task of a step.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, (0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "8"}, (3, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2"}, (1, 2)),
    ],
)
def test_who_a_task_is(environment: dict[str, str], expected: tuple[int, int]) -> None:
    assert task(environment) == expected


def test_where_tasks_meet() -> None:
    slurm = {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7", "SLURM_JOB_ID": "812"}
    host, port = meeting_place(slurm)
    assert host == "10.0.0.7"
    assert 20_000 <= port < 32_768
    assert meeting_place(slurm) == (host, port)
    # Neither another job's nor the one that the orphan of a requeued job may hold.
    others = [{**slurm, "SLURM_JOB_ID": "813"}, {**slurm, "SLURM_RESTART_COUNT": "1"}]
    assert all(abs(meeting_place(other)[1] - port) > 1 for other in others)
    named = {**slurm, "MASTER_ADDR": "n1", "MASTER_PORT": "4000"}
    assert meeting_place(named) == ("n1", 4000)
    with pytest.raises(RuntimeError, match="start them with srun or torchrun"):
        meeting_place({})
