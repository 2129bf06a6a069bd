"""Runs that others published, and a sweep of our own, small enough to come along.

Each is a table ``data/NAME.csv`` with its source and licence beside it; nothing is downloaded.
"""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable

import pandas as pd

#: Every data set, with what it holds.
DATASETS = {
    "porian": "isoFLOP runs on two corpora, 0.3M to 1B parameters: dataset (rw, owt2), hparams, "
    "warmup, decay, param_count, n_params, n_tokens, flops, loss (Porian et al. 2024)",
    "regmix": "512 models of 1M parameters over mixtures of 17 domains: weights w_*, losses loss_* "
    "(Liu et al. 2024)",
    "small_lm_mixtures": "the reference language model at three sizes over mixtures of eight kinds "
    "of text: n_params, n_tokens, weights w_*, losses loss_* in bits per byte",
    "gadre": "104 models on three corpora, 11M to 6.9B parameters: dataset, n_params, n_tokens, "
    "flops, losses loss_*, mean errors err_avg17 and err_avg46 (Gadre et al. 2024)",
    "muennighoff": "229 models of C4, 7M to 8.7B parameters, most on tokens that repeat: n_params, "
    "n_tokens, unique_tokens, loss (Muennighoff et al. 2023)",
    "small_lm_sweep": "a sweep of the reference language model, its check run last: output in nats "
    "per byte, cost in FLOPs, what was predicted of both, six hyperparameters",
}


def load(name: str) -> pd.DataFrame:
    """A data set by its name, one row a run; losses in nats, per token unless it says otherwise.

    Args:
        name: one of :data:`DATASETS`.

    Raises:
        ValueError: there is none of that name.
    """
    with _file(name, "csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)


def licence(name: str) -> str:
    """Where a data set comes from, and on what terms.

    Raises:
        ValueError: there is none of that name.
    """
    return _file(name, "LICENSE.txt").read_text(encoding="utf-8")


def _file(name: str, ending: str) -> Traversable:
    if name not in DATASETS:
        raise ValueError(f"there is no data set {name!r}: there are {', '.join(DATASETS)}")
    return files("carbs.analysis") / "data" / f"{name}.{ending}"
