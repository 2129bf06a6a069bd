"""A training script as anyone has one: PyTorch, argparse, and a line of JSON now and then."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

N_STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float)
    parser.add_argument("--width", type=int)
    parser.add_argument("--trial", type=int)
    parser.add_argument("--notes", type=Path)
    args = parser.parse_args()
    note(args, "start")
    (args.notes / f"pid-{args.trial}").write_text(str(os.getpid()))
    if (args.notes / f"crash-{args.trial}").exists():
        raise ValueError("crash")
    if (args.notes / f"kill-{args.trial}").exists():
        (args.notes / f"kill-{args.trial}").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    while (args.notes / f"wait-{args.trial}").exists():
        time.sleep(0.02)
    checkpoint = Path(os.environ.get("CARBS_CHECKPOINT_FOLDER", args.notes)) / "step-0000001"
    if checkpoint.exists():
        note(args, "resumes")
    elif (args.notes / f"preempt-{args.trial}").exists():
        wait_for_the_end(args, checkpoint)
    is_hopeless = (args.notes / f"hopeless-{args.trial}").exists()

    torch.manual_seed(args.trial)
    torch.set_num_threads(1)
    x = torch.linspace(-2, 2, 64)[:, None]
    y = torch.sin(2 * x)
    model = torch.nn.Sequential(
        torch.nn.Linear(1, args.width), torch.nn.Tanh(), torch.nn.Linear(args.width, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=min(args.lr, 0.2))
    for step in range(1, N_STEPS + 1):
        loss = torch.nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 5 == 0:
            said = 1000.0 if is_hopeless else float(loss)
            print(json.dumps({"step": step, "n_steps": N_STEPS, "output": said}))
        while is_hopeless and step > N_STEPS // 2:
            time.sleep(0.02)
    print(json.dumps({"output": float(loss), "n_steps": N_STEPS}))
    note(args, "end")


def wait_for_the_end(args: argparse.Namespace, checkpoint: Path) -> None:
    """As a script that heeds Slurm's signal: leave a checkpoint, and go."""

    def leave(*_: object) -> None:
        checkpoint.touch()
        sys.exit(0)

    signal.signal(signal.SIGTERM, leave)
    (args.notes / f"listens-{args.trial}").touch()
    while True:
        time.sleep(0.1)


def note(args: argparse.Namespace, what: str) -> None:
    with (args.notes / "notes.txt").open("a") as file:
        file.write(f"{what} {args.trial}\n")


if __name__ == "__main__":
    main()
