"""The receiving service alone, as a process of its own: ``python -m tests.scp_process STATE_DIR``; prints its port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dicom_node.core import logs, loops
from dicom_node.core.database import Database
from dicom_node.core.settings import Settings
from dicom_node.scp import Scp
from dicom_node.store import Store

ROOT = Path(__file__).resolve().parent.parent


def site(state_dir: Path, **scp: Any) -> Settings:
    """Settings of a site whose SCP takes calls from this machine."""
    sections = {
        "site": {"name": "Test", "state_dir": state_dir},
        "inference": {"engine": "plaintext"},
        "scp": {
            "port": 0,
            "minimum_free_bytes": 0,
            "peers": [{"ae_title": "STORESCU", "addresses": ["127.0.0.0/8", "::1"]}],
            **scp,
        },
    }
    return Settings.model_validate(sections)


@contextmanager
def running(
    state_dir: Path, *, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The service in a child process, under the command `prefix` (e.g. strace); yields the process and its port."""
    command = [*prefix, sys.executable, "-m", "tests.scp_process", str(state_dir)]
    environment = {**os.environ, **(environment or {})}
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # the prefix and what it started
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                if not prefix:  # strace holds signals back while it traces, on a busy machine for long
                    raise
            finally:  # a tracer that ends may swallow the signal of its tracee, which would then serve on
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    stop = loops.stop_on_signals()
    settings = site(Path(sys.argv[1]))
    logs.configure("scp", "error")
    database = Database(settings.database_url)
    database.migrate()
    store = Store(settings, database)
    store.recover()
    scp = Scp(settings, store)
    scp.start()
    print(scp.port, flush=True)
    stop.wait()
    scp.stop()
    database.close()


if __name__ == "__main__":
    main()
