"""Does the best learning rate stay where it is as the model grows wider?

    python benchmarks/mup.py [--out FOLDER] [--figure docs/mup.png]

Trains the reference job at several widths and learning rates, under the standard parametrization
and under muP, and prints the final training loss of each, with the best learning rate of each width
(of a parabola through the lowest and its neighbours, on logarithmic scales). Some 20 minutes of one
core. Runs lie in FOLDER/runs.csv, so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
from pathlib import Path

import numpy as np

from carbs.launchers.job.protocol import BadConfigurationError, Job
from carbs.launchers.lm.train import train

WIDTHS = [32, 64, 128, 256]
RATES = [2.0**power for power in range(-10, -2)]
BASE = 32
SAME = {"depth": 2, "head_width": 16, "tokens": 131_072, "batch_size": 4, "base_width": BASE}

Runs = dict[tuple[str, int, float], float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("mup-runs"))
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = read(options.out / "runs.csv")
    for width in WIDTHS:
        for name in ("standard", "mup"):
            for rate in RATES:
                # At the base width both are the same.
                key = ("standard" if width == BASE else name, width, rate)
                if key not in runs:
                    runs[key] = loss(*key, options.out)
                    write(options.out / "runs.csv", runs)
                runs[name, width, rate] = runs[key]
            print(row(name, width, runs), flush=True)
    if options.figure:
        draw(runs, options.figure)


def loss(name: str, width: int, rate: float, out: Path) -> float:
    params = {**SAME, "parametrization": name, "width": width, "learning_rate": rate}
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = train(params, Job(Path(folder), out / "data"))
        except BadConfigurationError:
            return math.inf
    return float(result.metrics["final_train_loss"])


def best(name: str, width: int, runs: Runs) -> float:
    """The learning rate of least loss: the vertex of a parabola through three points."""
    losses = np.array([runs[name, width, rate] for rate in RATES])
    i = int(np.clip(losses.argmin(), 1, len(RATES) - 2))
    curve = np.polynomial.Polynomial.fit(np.log2(RATES[i - 1 : i + 2]), losses[i - 1 : i + 2], 2)
    (vertex,) = curve.deriv().roots()
    return float(2**vertex)


def row(name: str, width: int, runs: Runs) -> str:
    losses = "".join(f"{runs[name, width, rate]:7.3f}" for rate in RATES)
    return f"{name:9s} width {width:4d} {losses}   best at {best(name, width, runs):.4f}"


def read(path: Path) -> Runs:
    if not path.exists():
        return {}
    with path.open() as file:
        return {
            (line["parametrization"], int(line["width"]), float(line["rate"])): float(line["loss"])
            for line in csv.DictReader(file)
        }


def write(path: Path, runs: Runs) -> None:
    with path.open("w") as file:
        file.write("parametrization,width,rate,loss\n")
        file.writelines(f"{name},{w},{rate},{loss}\n" for (name, w, rate), loss in runs.items())


def draw(runs: Runs, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for ax, (name, title) in zip(axes, [("standard", "standard"), ("mup", "muP")], strict=True):
        for width, shade in zip(WIDTHS, plt.cm.viridis(np.linspace(0.85, 0.1, 4)), strict=True):
            losses = [runs[name, width, rate] for rate in RATES]
            ax.plot(RATES, losses, "o-", color=shade, ms=4, label=f"width {width}")
            at = best(name, width, runs)
            ax.axvline(at, color=shade, lw=1, ls=":")
        ax.set(xscale="log", xlabel="learning rate", title=title)
        ax.spines[["top", "right"]].set_visible(False)
    finite = [value for value in runs.values() if math.isfinite(value)]
    axes[0].set(ylabel="training loss, nats per byte", ylim=(min(finite) - 0.05, min(finite) + 1.2))
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
