"""What was freed is given back to the system, or kept for the next query, as a service wishes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from secure_infer.operations import memory

PIECE, PIECES = 100_000, 500
#: Page faults of the last of several rounds that each allocate and free the same 30 MB.
ROUNDS = """
import resource
from secure_infer.operations import memory
{call}
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [bytearray(500_000) for _ in range(60)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def resident_kb() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def faults(call: str) -> int:
    script = ROUNDS.format(call=call)
    return int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)


def test_freed_memory_below_memory_in_use_is_given_back():
    pieces = [bytes([1]) * PIECE for _ in range(PIECES)]
    above = [bytes([1]) * PIECE for _ in range(20)]  # without the call, what is freed below it stays
    del pieces
    before = resident_kb()
    memory.release()
    assert before - resident_kb() > PIECE * PIECES / 1024 / 2
    del above


def test_a_query_pays_for_its_memory_once():
    assert faults("memory.keep()") < 500 < faults("")
