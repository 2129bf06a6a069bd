"""A node that cannot be trained on is known before it is, with the evidence."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from carbs.launchers.job import host
from carbs.launchers.job.gpu import check_kernel_log, nvml_checks, xid_errors
from carbs.launchers.job.health import (
    Check,
    HealthReport,
    check_node,
    compared,
    normalised_cost,
    slowdown,
    usual_speed,
)

IS_CPU_NODE = not torch.cuda.is_available()


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., HealthReport]:
    """Looks at this machine, hurriedly."""
    best_time = host.best_time
    monkeypatch.setattr(host, "best_time", lambda work, clock: best_time(work, clock, 0.01))

    def check(folder: Path = tmp_path / "checkpoints", **options: Any) -> HealthReport:
        return check_node(folder, **options)

    return check


def test_this_machine_is_fit_and_measured(
    check: Callable[..., HealthReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    report = check()
    assert report.problems == ()
    assert report.is_healthy
    assert report.may_train
    assert report.node == socket.gethostname()
    assert report.device
    assert report.speed is not None
    assert report.bandwidth is not None
    assert 1e-4 < report.speed < 1e4
    assert 0.1 < report.bandwidth < 1e5
    assert {"host memory", "disk space", "disk"} <= {check.name for check in report.checks}
    assert HealthReport.model_validate_json(report.model_dump_json()) == report
    # It leaves nothing behind.
    assert list(tmp_path.iterdir()) == []


def test_slurms_name_of_the_node_counts(
    check: Callable[..., HealthReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "n3")
    assert check().node == "n3"


def failed(report: HealthReport) -> dict[str, Check]:
    assert not report.is_healthy
    assert len(report.problems) == sum(not check.is_passed for check in report.checks)
    return {check.name: check for check in report.checks if not check.is_passed}


def test_a_device_that_is_missing_is_missed(
    check: Callable[..., HealthReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    n_seen = torch.cuda.device_count()
    report = check(n_devices=n_seen + 1)
    assert set(failed(report)) == {"devices"}
    assert report.problems == (
        f"devices: {n_seen} visible (CUDA_VISIBLE_DEVICES=), expected {n_seen + 1}",
    )
    assert check(n_devices=n_seen).is_healthy


@pytest.mark.skipif(not IS_CPU_NODE, reason="breaks the product on the CPU")
def test_a_device_that_multiplies_wrong_is_caught(
    check: Callable[..., HealthReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        product = a @ b
        product[700, 3] += 1  # one element of a million
        return product

    monkeypatch.setattr(host, "multiply", wrong)
    checks = failed(check())
    assert set(checks) == {"product on cpu"}
    assert checks["product on cpu"].measured == "1 wrong rows of 1024"


@pytest.mark.skipif(not IS_CPU_NODE, reason="breaks the product on the CPU")
def test_a_device_that_multiplies_wrong_now_and_then_is_caught(
    check: Callable[..., HealthReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    n = 0

    def flaky(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        nonlocal n
        n += 1
        product = a @ b
        product[0, 0] += n == 2
        return product

    monkeypatch.setattr(host, "multiply", flaky)
    checks = failed(check())
    assert set(checks) == {"product on cpu, again"}
    assert checks["product on cpu, again"].measured == "1 elements differ between two times"


def test_what_raises_or_hangs_has_failed(
    check: Callable[..., HealthReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> np.ndarray:
        raise RuntimeError("CUDA error: uncorrectable ECC error\nmore lines")

    never = threading.Event()
    monkeypatch.setattr(host, "multiply", broken)
    monkeypatch.setattr(host, "check_folder", lambda *_: never.wait())
    report = check(timeout_s=2.0)
    never.set()
    checks = failed(report)
    assert any("uncorrectable ECC error" in problem for problem in report.problems)
    assert checks["disk"].measured == "no answer"
    assert report.speed is None
    assert report.bandwidth is not None
    assert HealthReport.model_validate_json(report.model_dump_json()) == report


def test_too_little_memory_or_space_is_said_with_the_numbers(
    check: Callable[..., HealthReport],
) -> None:
    checks = failed(check(min_memory_gib=2**20, min_disk_gib=2**30))
    assert set(checks) == {"host memory", "disk space"}
    assert checks["host memory"].expected == "at least 1.04858e+06 GiB"
    assert "GiB free in" in checks["disk space"].measured


def test_a_folder_that_cannot_be_written_is_the_evidence(
    check: Callable[..., HealthReport], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert "cannot make the folder" in failed(check(tmp_path / "file" / "folder"))["disk"].measured
    assert "cannot make the folder" in failed(check(Path("/proc/none")))["disk"].measured


def test_a_disk_that_is_full_is_the_evidence_and_nothing_is_left(
    check: Callable[..., HealthReport], tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        report = check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failed(report)["disk"].measured.startswith("cannot write: ")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_gives_back_other_bytes_is_caught(
    check: Callable[..., HealthReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read(self)[:-1] + b"?")
    # One in 256 times the last byte is that anyway.
    monkeypatch.setattr(os, "urandom", lambda n: bytes(n))
    checks = failed(check())
    assert set(checks) == {"disk"}
    assert "other bytes" in checks["disk"].measured


def report_of(speed: float | None, device: str = "H200", bandwidth: float = 10) -> HealthReport:
    return HealthReport(
        node="n1",
        device=device,
        n_devices=1,
        time=0,
        duration_s=1,
        speed=speed,
        bandwidth=bandwidth,
        checks=(),
    )


SEEN = [report_of(100), report_of(90), report_of(110), report_of(None), report_of(5, "L4")]


def test_a_slow_node_is_one_slower_than_others_with_its_device() -> None:
    assert slowdown(report_of(50), SEEN) == 2
    assert slowdown(report_of(200), SEEN) == 0.5
    assert slowdown(report_of(None), SEEN) is None
    assert slowdown(report_of(5, "L4"), SEEN) is None
    assert usual_speed("H200", SEEN) == 100
    assert usual_speed("A100", SEEN) is None
    assert compared(report_of(70), SEEN).is_healthy
    slow = compared(report_of(60), SEEN)
    assert slow.problems == ("speed: 60 TFLOP/s, expected at least 66.67 (median 100 on H200)",)
    assert compared(report_of(60), SEEN, limit=2).is_healthy
    (line,) = compared(report_of(100, bandwidth=2), SEEN).problems
    assert line.startswith("bandwidth: 2 GB/s, expected at least 6.667 (median 10")
    # Too few to compare with.
    assert compared(report_of(1, "L4"), SEEN).checks == ()


def test_the_cost_of_a_slow_node_is_that_of_the_usual_one() -> None:
    assert normalised_cost(30, 50, 100) == 15
    assert normalised_cost(30, 200, 100) == 60
    assert normalised_cost(30, None, 100) == normalised_cost(30, 50, None) == 30
    with pytest.raises(ValueError, match="expected positive"):
        normalised_cost(30, 0, 100)


class FakeNvml(SimpleNamespace):
    """A GPU as NVML sees it; ``None`` where it knows nothing."""

    NVML_TEMPERATURE_GPU = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    class NVMLError(Exception):
        pass

    def __init__(self, **answers: Any) -> None:
        good = {
            "Temperature": 60,
            "TemperatureThreshold": 87,
            "CurrentClocksThrottleReasons": 0x5,  # idle, and a power cap
            "TotalEccErrors": 0,
            "RemappedRows": (2, 0, 0, 0),
        }
        super().__init__(
            **{f"nvmlDeviceGet{k}": self._answer(v) for k, v in {**good, **answers}.items()}
        )

    def _answer(self, value: Any) -> Callable[..., Any]:
        def answer(handle: str, *_: Any) -> Any:
            assert handle == "handle"
            if value is None:
                raise self.NVMLError("Not Supported")
            return value

        return answer


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({}, None),
        ({"Temperature": 88}, "temperature of cuda:0: 88 °C, expected below 87 °C"),
        (
            {"Temperature": 91, "TemperatureThreshold": None},
            "temperature of cuda:0: 91 °C, expected below 90 °C",
        ),
        (
            {"CurrentClocksThrottleReasons": 0x4C},
            "throttling of cuda:0: hardware slowdown, too hot for the hardware, expected none",
        ),
        ({"TotalEccErrors": 3}, "ECC of cuda:0: 3 uncorrected errors, expected none"),
        (
            {"RemappedRows": (1, 1, 1, 0)},
            "rows of cuda:0: 2 remapped, more are pending, expected none pending or failed",
        ),
        (
            {"RemappedRows": (0, 9, 0, 1)},
            "rows of cuda:0: 9 remapped, one failed, expected none pending or failed",
        ),
        (
            {"Temperature": None, "TotalEccErrors": None, "RemappedRows": None},
            None,
        ),
    ],
)
def test_what_nvml_knows_of_a_gpu(answers: dict[str, Any], problem: str | None) -> None:
    checks = nvml_checks(FakeNvml(**answers), "handle", "cuda:0")
    assert [str(check) for check in checks if not check.is_passed] == ([problem] if problem else [])
    assert len(checks) == 4 - sum(
        answers.get(name, 0) is None for name in ("Temperature", "TotalEccErrors", "RemappedRows")
    )


KERNEL_LOG = """\
6,339,5140900,-;NET: Registered protocol family 10
3,1001,100000000,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.
3,1002,200000000,-;NVRM: Xid (PCI:0000:3b:00): 31, pid=2, name=python, MMU Fault
3,1003,200000001,-;NVRM: Xid (PCI:0000:5e:00): 48, pid=3, DBE on GPU
"""


def test_the_kernels_recent_errors_of_the_hardware_are_found(tmp_path: Path) -> None:
    records = KERNEL_LOG.splitlines()
    of_79, of_48 = (
        "NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:5e:00): 48, pid=3, DBE on GPU",
    )
    assert xid_errors(records, since_s=0) == [of_79, of_48]
    assert xid_errors(records, since_s=150) == [of_48]
    assert xid_errors(records, since_s=300) == []
    (tmp_path / "kmsg").write_text(KERNEL_LOG)
    _, (check,) = check_kernel_log(tmp_path / "kmsg", within_s=1e12)
    assert str(check).startswith(f"Xid errors: {of_79}; {of_48}, expected none in the last")
    assert not check.is_passed
    assert check_kernel_log(tmp_path / "unreadable") == (None, [])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_in_tasks(tmp_path: Path, code: str, n: int = 2, n_start: int = 2) -> list[HealthReport]:
    """Every task runs the code, then looks at its node."""
    port = free_port() - 1  # the health check meets one port further
    tasks = []
    for rank in range(n_start):
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "SLURM_PROCID": str(rank),
            "SLURM_STEP_NUM_TASKS": str(n),
            "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        program = (
            "from pathlib import Path; from carbs.launchers.job import health, host; rank = "
            f"{rank}\n{code}\nreport = health.check_node(Path({str(tmp_path)!r}))\n"
            "print('report', report.model_dump_json())"
        )
        tasks.append(
            subprocess.Popen(
                [sys.executable, "-c", program],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    reports = []
    for process in tasks:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        line = next(line for line in out.splitlines() if line.startswith("report "))
        reports.append(HealthReport.model_validate(json.loads(line.removeprefix("report "))))
    return reports


def test_tasks_learn_of_each_other(tmp_path: Path) -> None:
    code = "multiply = host.multiply\nhost.multiply = lambda a, b: multiply(a, b) + rank"
    fit, unfit = check_in_tasks(tmp_path, code)
    assert [check.is_passed for check in fit.checks if check.name == "collectives"] == [True]
    assert fit.is_healthy
    assert not fit.may_train
    assert fit.unfit_ranks == unfit.unfit_ranks == (1,)
    assert set(failed(unfit)) == {"product on cpu"}
    assert (fit.rank, unfit.rank) == (0, 1)


def test_a_task_that_never_comes_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    (alone,) = check_in_tasks(tmp_path, "health.RENDEZVOUS_S = 1.0", n_start=1)
    assert set(failed(alone)) == {"collectives"}


@pytest.mark.skipif(not IS_CPU_NODE, reason="GPUs are looked at with torch")
def test_a_node_without_gpus_is_looked_at_without_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from carbs.launchers.job.health import check_node; "
        f"print(check_node(Path({str(tmp_path)!r})).is_healthy, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]
