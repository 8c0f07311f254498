"""How fast studies are received: our SCP beside DCMTK's storescp and Orthanc, with the same senders in the same run.

Run: ``python -m tests.bench.ingest --json FILE``. Senders push encoded instances from memory with TCP_NODELAY and
PDUs as long as the receiver takes; an instance counts when its success has arrived. Figures are medians of the rounds;
in each round every receiver has its turn. Memory is the peak of the resident sizes of the receiver's processes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dicom_node import uids
from tests.bench import figures
from tests.raw_peer import ACCEPTED, RawPeer, encode, image
from tests.scp_process import ROOT, running

#: name: (side of the image in pixels of 2 bytes, senders, instances per sender)
LOADS = {"8mb_x1": (2000, 1, 24), "8mb_x4": (2000, 4, 10), "05mb_x1": (500, 1, 80), "05mb_x4": (500, 4, 60)}


def send(port: int, called: str, side: int, count: int, seed: str) -> None:
    """The sender process: prepares, waits for a line on standard input, sends `count` instances, says "done"."""
    dataset, placeholder = image("bench", study=seed, side=side)
    encoded = bytearray(encode(dataset))
    at = encoded.index(placeholder.encode())
    with RawPeer(port, timeout=120) as peer:
        assert peer.associate(called=called) == ACCEPTED
        print("ready", flush=True)
        sys.stdin.readline()
        for number in range(count):
            uid = uids.derive("bench", seed, str(number))[: len(placeholder)].ljust(len(placeholder), "1")
            encoded[at : at + len(uid)] = uid.encode()
            assert peer.store(bytes(encoded), uid) == 0
        print("done", flush=True)
        peer.release()


def resident_mb(root: int) -> float:
    """Resident size of a process and its children, MB."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if "VmRSS" in fields:
            parents[int(fields["Pid"])] = int(fields["PPid"]), int(fields["VmRSS"].split()[0]) / 1024
    family = {root}
    while more := {pid for pid, (parent, _) in parents.items() if parent in family} - family:
        family |= more
    return sum(size for pid, (_, size) in parents.items() if pid in family)


def seconds(port: int, called: str, load: str, turn: str) -> float:
    """Wall-clock seconds from the senders' start to the last success."""
    side, senders, count = LOADS[load]
    arguments = [str(port), called, str(side), str(count)]
    command = [sys.executable, "-m", "tests.bench.ingest", "--sender", *arguments]
    processes = [
        subprocess.Popen(
            [*command, f"{turn}-{load}-{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(senders)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    start = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
    elapsed = time.perf_counter() - start
    for process in processes:
        process.communicate()
    return elapsed


@contextmanager
def ours(folder: Path) -> Iterator[tuple[int, int, str]]:
    with running(folder) as (process, port):
        yield process.pid, port, "VEILRAY"


@contextmanager
def storescp(folder: Path) -> Iterator[tuple[int, int, str]]:
    port = free_port()
    command = ["storescp", "--fork", "--max-pdu", "131072", "--output-directory", str(folder), "-aet", "ANY", str(port)]
    environment = {**os.environ, "TCP_NODELAY": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        time.sleep(0.5)
        try:
            yield process.pid, port, "ANY"
        finally:
            process.terminate()


@contextmanager
def orthanc(_: Path) -> Iterator[tuple[int, int, str]]:
    from dicom_node.demo.orthanc_server import OrthancServer

    with OrthancServer(environment={"TCP_NODELAY": "1"}) as server:
        yield server.pid, server.dicom_port, "ORTHANC"


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


RECEIVERS: dict[str, Callable] = {"ingest": ours, "storescp": storescp, "orthanc": orthanc}
PROGRAMS = {"ingest": sys.executable, "storescp": "storescp", "orthanc": "Orthanc"}


def measure(rounds: int, receivers: list[str]) -> tuple[dict[str, float], dict[str, object]]:
    samples: dict[str, list[float]] = {}
    for turn in range(rounds):
        for name in receivers:
            folder = Path(tempfile.mkdtemp(prefix=f"ingest-{name}-"))
            with RECEIVERS[name](folder) as (pid, port, called):
                peak = Peak(pid)
                for load, (side, senders, count) in LOADS.items():
                    elapsed = seconds(port, called, load, f"{name}-{turn}")
                    instances, megabytes = senders * count, senders * count * side * side * 2 / 1e6
                    unit = ("mb_s", megabytes) if load.startswith("8mb") else ("per_s", instances)
                    samples.setdefault(f"{name}_{load}_{unit[0]}", []).append(unit[1] / elapsed)
                samples.setdefault(f"{name}_rss_mb", []).append(peak.stop())
            shutil.rmtree(folder, ignore_errors=True)
    found = {name: round(statistics.median(values), 1) for name, values in samples.items()}
    absent = {name: "not installed" for name in RECEIVERS if name not in receivers}
    return found, {**{name: "measured in the same run" for name in receivers if name != "ingest"}, **absent}


class Peak:
    """Samples a process's resident size until `stop`."""

    def __init__(self, pid: int) -> None:
        self._ended = threading.Event()
        self._peak = 0.0
        self._thread = threading.Thread(target=self._sample, args=(pid,), daemon=True)
        self._thread.start()

    def _sample(self, pid: int) -> None:
        while not self._ended.wait(0.1):
            self._peak = max(self._peak, resident_mb(pid))

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        return self._peak


def main() -> None:
    if sys.argv[1:2] == ["--sender"]:
        port, called, side, count, seed = sys.argv[2:]
        send(int(port), called, int(side), int(count), seed)
        return
    parser = argparse.ArgumentParser(prog="python -m tests.bench.ingest", description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=RECEIVERS)
    arguments = parser.parse_args()
    from dicom_node.demo.orthanc_server import find_orthanc

    installed = {"ingest": True, "storescp": shutil.which("storescp"), "orthanc": find_orthanc()}
    receivers = [name for name in RECEIVERS if installed[name] and arguments.only in (None, name)]
    found, peers = measure(arguments.rounds, receivers)
    for name, value in sorted(found.items()):
        print(f"{name:32} {value:10.1f}")
    figures.write(arguments.json, found, peers)


if __name__ == "__main__":
    main()
