"""Figures, measured by commands of their own: `python -m tests.bench.NAME --json FILE`, all of them by `make bench`."""
