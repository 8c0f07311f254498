"""Runs every bench command of this folder, each in a process of its own, and leaves its JSON in a folder."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

NOT_COMMANDS = {"__init__", "__main__"}


def commands() -> list[str]:
    """The modules here that say so: python -m tests.bench.NAME ... --json FILE."""
    folder = Path(__file__).parent
    return sorted(
        path.stem for path in folder.glob("*.py") if path.stem not in NOT_COMMANDS and "--json FILE" in path.read_text()
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the JSON files")
    out = parser.parse_args().out
    failed = []
    for name in commands():
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"tests.bench.{name}", "--json", str(out / f"{name}.json")]
        if subprocess.run(command, check=False).returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
