"""Measures how time and memory of encoding grow with the turns of one chat row.

    python -m tests.proof.chat_rows MODEL_FOLDER 1000 2000 4000 8000 10000

Each size runs in a process of its own: processor seconds, with those of the child that renders, and the
growth of the peak memory.
"""

from __future__ import annotations

import resource
import subprocess
import sys

from tests.tiny_model import chat, tiny_base


def measure(folder: str, turns: int) -> None:
    """Encode one row of `turns` messages and print a line."""
    from workers.engine.base_models.model import load_tokenizer
    from workers.engine.training.encoding import CanonicalRow, encode

    tokenizer = load_tokenizer(tiny_base(folder))
    encode(tokenizer, [CanonicalRow(1, chat("warm", "up"), None)])
    messages = [message for turn in range(turns // 2) for message in chat(f"And {turn}?", f"It is {turn}.")]
    before, memory = _seconds(), _peak()
    example = encode(tokenizer, [CanonicalRow(1, messages, None)])[0]
    print(
        f"{turns:>7,} turns  {len(example.ids):>8,} tokens  {example.target_count:>7,} learned  "
        f"{_seconds() - before:6.2f} s  {(_peak() - memory) / 1e6:6.0f} MB"
    )


def _seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    model, *sizes = sys.argv[1:]
    if len(sizes) == 1:
        measure(model, int(sizes[0]))
    for size in sizes if len(sizes) > 1 else ():
        subprocess.run([sys.executable, "-m", "tests.proof.chat_rows", model, size], check=True)
