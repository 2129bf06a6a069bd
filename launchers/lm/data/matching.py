"""Which of many byte strings occur in a text, in one pass over it.

The hash of a window rolls over the text (Karp and Rabin 1987): that of twice the width is made of
two of half the width,

    h_1(i) = text[i] + 1        h_2w(i) = h_w(i) B^w + h_w(i + w)        modulo 2^64

and what has the hash of a pattern's end is compared with all of the pattern.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

_BASE = 0x9E3779B97F4A7C15  # odd; its bits are those of the golden ratio
_MODULUS = 2**64
_WIDEST = 32
_TABLE_BITS = 20


class Matcher:
    """Collects which patterns have occurred in the texts that it was shown.

    Args:
        patterns: none empty; of 32 bytes or more, better, as shorter ones take longer to rule out.
    """

    def __init__(self, patterns: Sequence[bytes]) -> None:
        self.found: set[int] = set()
        self._patterns = patterns
        # By width: the patterns, of which this is the largest power of two, by their end's hash.
        self._ends: dict[int, dict[int, list[int]]] = {}
        for i, pattern in enumerate(patterns):
            width = min(_WIDEST, 1 << (len(pattern).bit_length() - 1))
            ends = self._ends.setdefault(width, defaultdict(list))
            ends[_hash(pattern[-width:])].append(i)
        self._tables = {width: _table(ends) for width, ends in self._ends.items()}

    def read(self, text: bytes) -> None:
        """Look for the patterns in a text."""
        hashes = np.frombuffer(text, dtype=np.uint8).astype(np.uint64) + np.uint64(1)
        width = 1
        while len(hashes):
            if width in self._ends:
                may_match = self._tables[width][hashes >> np.uint64(64 - _TABLE_BITS)]
                for at in np.flatnonzero(may_match).tolist():
                    self._compare(text, at + width, self._ends[width], int(hashes[at]))
            if width == _WIDEST:
                return
            hashes = hashes[:-width] * np.uint64(pow(_BASE, width, _MODULUS)) + hashes[width:]
            width *= 2

    def _compare(self, text: bytes, end: int, ends: dict[int, list[int]], hashed: int) -> None:
        for i in ends.get(hashed, ()):
            pattern = self._patterns[i]
            start = end - len(pattern)
            if i not in self.found and start >= 0 and text.startswith(pattern, start):
                self.found.add(i)


def _hash(window: bytes) -> int:
    if len(window) == 1:
        return window[0] + 1
    half = len(window) // 2
    power = pow(_BASE, half, _MODULUS)
    return (_hash(window[:half]) * power + _hash(window[half:])) % _MODULUS


def _table(ends: dict[int, list[int]]) -> np.ndarray[tuple[int], np.dtype[np.bool]]:
    """Whether any pattern's hash begins with these bits: rules out nearly all windows."""
    table = np.zeros(1 << _TABLE_BITS, dtype=np.bool)
    table[[hashed >> (64 - _TABLE_BITS) for hashed in ends]] = True
    return table
