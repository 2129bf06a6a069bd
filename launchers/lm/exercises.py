"""Small programs whose prints say what they print, as a component to train on.

    m = 8
    print(*range(m, 18, 2))  # 8 10 12 14 16
    print(4 + 7)  # 11

What they ask for is graded, so that a little training already helps and more still does: to count
on, in steps of other sizes, to stop in time, to add, and to look up a variable.
"""

from __future__ import annotations

import random
import string

PRINTED = ")  # "


def write_programs(n: int, seed: int) -> list[str]:
    """Up to ``n`` programs, no two the same: ``n`` are drawn, and repeats dropped."""
    rng = random.Random(seed)
    return list(dict.fromkeys(_write(rng) for _ in range(n)))


def _write(rng: random.Random) -> str:
    """One to three prints, each of a number or a variable of its own."""
    lines = []
    for name in rng.sample(string.ascii_lowercase, rng.randint(1, 3)):
        value = rng.randint(0, 9)
        shown = str(value)
        if rng.random() < 0.6:
            lines.append(f"{name} = {value}\n")
            shown = name
        kind = rng.random()
        if kind < 0.75:
            step = rng.choice((1, 1, 1, 2, 3, -1))
            stop = value + step * rng.randint(2, 5)
            by = "" if step == 1 else f", {step}"
            numbers = " ".join(map(str, range(value, stop, step)))
            lines.append(f"print(*range({shown}, {stop}{by}){PRINTED}{numbers}\n")
        elif kind < 0.85:
            lines.append(f"print({shown}{PRINTED}{value}\n")
        else:
            added = rng.randint(1, 9)
            lines.append(f"print({shown} + {added}{PRINTED}{value + added}\n")
    return "".join(lines)
