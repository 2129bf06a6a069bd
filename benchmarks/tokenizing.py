"""How long it takes to tokenize, beside the tokenizer's own batch call over the same text.

    python benchmarks/tokenizing.py --megabytes 100 --rounds 3

Writes JSON lines of Python source that is installed here, and trains a byte-level BPE tokenizer on
some of it. Then it takes turns between two ways, on all processors that this process may use:

    library    ``encode_batch`` over the texts, which lie in memory already, 10,000 at a time, since
               what it returns of a gigabyte would not fit
    carbs      from the file to shards on the disk: read, hashed, parsed, split, tokenized, written

and prints the seconds of each, on the clock and of all processors, and the medians of their ratios.
Reading and writing are part of what carbs is charged for, and not of what the library is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import loky

os.environ["TOKENIZERS_PARALLELISM"] = "true"
os.environ["RAYON_NUM_THREADS"] = str(loky.cpu_count())

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from carbs.launchers.lm.data.shards import PLACES, make_shards
from carbs.launchers.lm.data.sources import Source, pieces

VOCABULARY = 32_000
CHARACTERS = 4_000  # of a document
AT_ONCE = 10_000  # documents of a call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.megabytes * 1_000_000, arguments.rounds)


def measure(folder: Path, n_bytes: int, rounds: int) -> None:
    lines = folder / "text.jsonl"
    texts = write_lines(lines, n_bytes)
    file = folder / "tokenizer.json"
    library = train(texts[:: max(1, len(texts) // 2_000)])
    library.save(str(file))
    size = lines.stat().st_size
    print(
        f"{size / 1e6:.0f} MB of JSON lines, {len(texts)} documents, a vocabulary of {VOCABULARY}"
    )
    print(f"{loky.cpu_count()} processors; each round takes one way, then the other")
    found = pieces("text", Source(path=str(lines)))
    clock_ratios, processor_ratios = [], []
    for i in range(rounds):
        library_s = timed(lambda: encode(library, texts))
        shards = folder / f"shards-{i}"
        carbs_s = timed(lambda to=shards: make_shards(found, str(file), PLACES // 10, to))
        for name, (clock_s, processors_s) in (("library", library_s), ("carbs", carbs_s)):
            rate = size / 1e6 / clock_s
            print(
                f"{name:8} {clock_s:7.1f} s, {processors_s:7.1f} s of processors, {rate:.1f} MB/s"
            )
        clock_ratios.append(carbs_s[0] / library_s[0])
        processor_ratios.append(carbs_s[1] / library_s[1])
    print(f"median ratio on the clock {statistics.median(clock_ratios):.2f}")
    print(f"median ratio of processors {statistics.median(processor_ratios):.2f}")


def encode(library: Tokenizer, texts: list[str]) -> None:
    for start in range(0, len(texts), AT_ONCE):
        library.encode_batch(texts[start : start + AT_ONCE], add_special_tokens=False)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of all processors, those of ended processes included."""
    clock, before = time.perf_counter(), os.times()
    work()
    after = os.times()
    return time.perf_counter() - clock, sum(after[:4]) - sum(before[:4])


def write_lines(path: Path, n_bytes: int) -> list[str]:
    """Parts of the files, again and again in other order; no two documents are the same."""
    rng = random.Random(0)
    parts = list(source())
    texts: list[str] = []
    written = 0
    with path.open("w") as file:
        while written < n_bytes:
            part = rng.choice(parts)
            texts.append(f"# {len(texts)}\n{part}")
            written += file.write(json.dumps({"text": texts[-1], "id": len(texts)}) + "\n")
    return texts


def source() -> Iterator[str]:
    for folder in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(folder).rglob("*.py")):
            try:
                text = path.read_text()
            except (OSError, UnicodeDecodeError):
                continue
            for start in range(0, len(text), CHARACTERS):
                yield text[start : start + CHARACTERS]


def train(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


if __name__ == "__main__":
    main()
