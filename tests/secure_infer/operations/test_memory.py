"""What was freed is given back to the system."""

from __future__ import annotations

from pathlib import Path

from secure_infer.operations import memory

PIECE, PIECES = 100_000, 500


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_freed_memory_below_memory_in_use_is_given_back():
    pieces = [bytes([1]) * PIECE for _ in range(PIECES)]
    above = [bytes([1]) * PIECE for _ in range(20)]  # without the call, what is freed below it stays
    del pieces
    before = resident_kb()
    memory.release()
    assert before - resident_kb() > PIECE * PIECES / 1024 / 2
    del above
