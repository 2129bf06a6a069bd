"""The order of the sequences: which tokens the model reads at which place of its training.

What stands at a place depends on the seed and on the place alone: not on how many devices read, nor
on where a run was resumed. A component's tokens are cut into sequences, which come in random order,
each once before any comes again; then they are cut elsewhere, and come in another order.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from carbs.launchers.job.protocol import BadConfigurationError
from carbs.launchers.lm.data.corpus import Corpus, Tokens

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
_BLOCK = 4096  # places, after each of which it is noted how many sequences each component gave


class Phase(NamedTuple):
    """A part of the training with a mix of its own.

    Attributes:
        begins: at this place, counted in sequences.
        weights: for each component its share of the sequences; one left out has none.
    """

    begins: int
    weights: Mapping[str, float]


class DataMix:
    """Sequences that come from the components in proportion to their weights.

    Args:
        corpus: what :func:`prepare` returned.
        weights: for each component its share of the sequences; a component left out has none.
        seq_len: tokens that the model reads in a sequence.
        seed: with a place, decides what stands there.
        later: phases that follow on the first, with mixes of their own.

    Raises:
        ValueError: a weight is negative or for an unknown component, the weights do not sum to
            one, or a component is shorter than one sequence.
    """

    def __init__(
        self,
        corpus: Corpus,
        weights: Mapping[str, float],
        seq_len: int,
        seed: int,
        later: Iterable[Phase] = (),
    ) -> None:
        phases = [Phase(0, weights), *later]
        for phase in phases:
            _check(phase.weights, corpus)
        self._corpus = corpus
        self.seq_len = seq_len
        self.seed = seed
        # A mix is the same in whatever order it is written.
        self._names = sorted({name for phase in phases for name in phase.weights})
        self._begins = [phase.begins for phase in phases]
        self._upper_edges = [_upper_edges(phase.weights, self._names) for phase in phases]
        self._components = [corpus.components[name] for name in self._names]
        self._tokens: list[Tokens] = [component.tokens() for component in self._components]
        for name, tokens in zip(self._names, self._tokens, strict=True):
            if len(tokens) <= seq_len:
                raise ValueError(
                    f"component {name!r} has {len(tokens)} tokens to train on, too few for a "
                    f"sequence of {seq_len}: give it more text, or lower seq_len"
                )
        # How many sequences each component has given before each block of places.
        self._given = [np.zeros(len(self._names), dtype=np.int64)]
        self._order = lru_cache(maxsize=2 * len(self._names))(self._order_of_epoch)
        self._block = lru_cache(maxsize=2)(self._block_of_places)

    def batch(self, step: int, batch_size: int) -> torch.Tensor:
        """The batch of a step: see :meth:`sequences`."""
        return self.sequences(step * batch_size, (step + 1) * batch_size)

    def sequences(self, start: int, stop: int) -> torch.Tensor:
        """What stands at the places from ``start`` up to ``stop``, which is not among them.

        Returns:
            ``(stop - start) x (seq_len + 1)`` tokens as int64: what is read, and the token after.
        """
        found = np.empty((stop - start, self.seq_len + 1), dtype=np.int64)
        for row, place in zip(found, range(start, stop), strict=True):
            sources, numbers = self._block(place // _BLOCK)
            row[:] = self._sequence(sources[place % _BLOCK], numbers[place % _BLOCK])
        return torch.from_numpy(found)

    def usage(self, start: int, stop: int) -> dict[str, dict[str, float]]:
        """Of each component, the ``tokens`` read at some places, and ``epochs`` over all of it."""
        first, last = self._counts_before(start), self._counts_before(stop)
        return {
            name: {"tokens": int(n) * self.seq_len, "epochs": int(n) * self.seq_len / len(tokens)}
            for name, n, tokens in zip(self._names, last - first, self._tokens, strict=True)
        }

    def facts(self, n: int) -> dict[str, dict[str, Any]]:
        """Of every component what it is, and what of it is read in ``n`` sequences."""
        unused = {"tokens": 0, "epochs": 0.0}
        usage = self.usage(0, n)
        return {
            name: component.facts() | usage.get(name, unused)
            for name, component in self._corpus.components.items()
        }

    def refuse_repetition(self, n: int, max_epochs: float | None) -> None:
        """Whether ``n`` sequences go over any component more often than allowed.

        It is the configuration that asks for too much: a failure that the search learns to avoid,
        and one that costs nothing.

        Raises:
            BadConfigurationError: they do.
        """
        for name, used in self.usage(0, n).items():
            if max_epochs is not None and used["epochs"] > max_epochs:
                unique = len(self._tokens[self._names.index(name)])
                raise BadConfigurationError(
                    f"too many epochs: {used['tokens']} tokens are {used['epochs']:.3g} epochs of "
                    f"component {name!r}, which has {unique}; max_epochs is {max_epochs:g}",
                    cost=0.0,
                )

    def bytes_per_token(self, start: int, stop: int) -> float:
        """Of the tokens at some places, as their components have on average."""
        n_tokens = [used["tokens"] for used in self.usage(start, stop).values()]
        per_token = [component.facts()["bytes_per_token"] for component in self._components]
        return float(np.average(per_token, weights=n_tokens))

    def _sequence(self, source: int, number: int) -> NDArray[Any]:
        """The ``number``-th sequence that a component gives."""
        tokens = self._tokens[source]
        epoch, in_epoch = divmod(number, len(tokens) // self.seq_len)
        first, order = self._order(source, epoch)
        at = (first + int(order[in_epoch]) * self.seq_len) % len(tokens)
        return tokens.read(at, self.seq_len + 1)

    def _order_of_epoch(self, source: int, epoch: int) -> tuple[int, NDArray[np.int64]]:
        """Where the first sequence begins, and in which order they come."""
        digest = hashlib.sha256(self._names[source].encode()).digest()
        rng = np.random.default_rng([self.seed, int.from_bytes(digest[:8], "big"), epoch])
        first = int(rng.integers(self.seq_len))
        return first, rng.permutation(len(self._tokens[source]) // self.seq_len)

    def _block_of_places(self, block: int) -> tuple[list[int], list[int]]:
        """For each place the component, and how many sequences that has given before."""
        sources = self._sources(block * _BLOCK, (block + 1) * _BLOCK)
        numbers = np.empty(_BLOCK, dtype=np.int64)
        for source, before in enumerate(self._given_before(block)):
            at = sources == source
            numbers[at] = before + np.arange(np.count_nonzero(at))
        return sources.tolist(), numbers.tolist()

    def _given_before(self, block: int) -> NDArray[np.int64]:
        """How many sequences each component has given before a block."""
        while len(self._given) <= block:
            start = (len(self._given) - 1) * _BLOCK
            self._given.append(self._given[-1] + self._counts(start, start + _BLOCK))
        return self._given[block]

    def _counts_before(self, place: int) -> NDArray[np.int64]:
        block = place // _BLOCK
        return self._given_before(block) + self._counts(block * _BLOCK, place)

    def _counts(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.bincount(self._sources(start, stop), minlength=len(self._names))

    def _sources(self, start: int, stop: int) -> NDArray[np.intp]:
        """Which component each sequence is from.

        Multiples of the golden ratio, modulo one, fill the unit interval evenly from the first on.
        Independent draws would give a short run another mix than it asked for.
        """
        places = np.arange(start, stop)
        points = (np.random.default_rng(self.seed).random() + GOLDEN_RATIO * places) % 1
        sources = np.empty(len(places), dtype=np.intp)
        for begins, edges in zip(self._begins, self._upper_edges, strict=True):
            # Rounding may leave the last edge below one: what is above it counts to the last
            # component that has a share.
            inside = np.minimum(points, np.nextafter(edges[-1], 0))
            drawn = np.searchsorted(edges, inside, side="right")
            sources = np.where(places >= begins, drawn, sources)
        return sources


def _check(weights: Mapping[str, float], corpus: Corpus) -> None:
    for name, weight in weights.items():
        if name not in corpus.components:
            known = ", ".join(corpus.components)
            raise ValueError(f"mix: unknown component {name!r}; the data has {known}")
        if not weight >= 0:
            raise ValueError(f"mix: the weight of {name!r} is {weight}, and must be 0 or more")
    total = sum(weights.values())
    if not abs(total - 1) <= 1e-6:
        raise ValueError(f"mix: the weights of {sorted(weights)} sum to {total}, not to 1")


def _upper_edges(weights: Mapping[str, float], names: list[str]) -> NDArray[np.float64]:
    total = sum(weights.values())
    return np.cumsum([weights.get(name, 0.0) / total for name in names])
