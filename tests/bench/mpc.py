"""Networks under encryption beside plain torch and stock CrypTen, three real processes each, one thread each.

Run: ``python -m tests.bench.mpc --json FILE``. Ours speak mutual TLS on loopback; CrypTen speaks plain TCP. In each
round the same image is answered in the clear, by our engine and by CrypTen in turn, so that what else the machine does
meets all three. *Online* is from image to opened logits at the hospital, *offline* all that a bundle needs before,
dealing included; *pooled offline* is that of a bundle which was dealt before it was asked for; *processor* is the mean
time that a query, both phases, took of all roles' processors together. The first round warms up and is not counted.
Weights are random but for the default model's.

Afterwards the same is asked across slow links between the roles (`tests.bench.links`). Of each figure in seconds the
median is given; memory is the largest a process ever held.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from dicom_node.core import logs
from tests.bench import figures, hospital_process
from tests.bench.children import Child
from tests.bench.crypten_stock import Stock
from tests.bench.inference import resident_mb, timed
from tests.bench.links import LINKS, measured, relayed
from tests.bench.mpc_networks import NETWORKS, Subject
from tests.system.roles import Roles

#: No answer takes this long, on any link.
PATIENCE_S = 300.0
#: Where a network asks for more queries than this, the pool and the links get this many.
MOST_AFTERWARDS = 20


def asked(hospital: Child, number: int) -> tuple[dict, dict]:
    """Run the offline and the online phase of one query."""
    offline = hospital.ask({"step": "offline"}, PATIENCE_S)
    return offline, hospital.ask({"step": "online", "image": number}, PATIENCE_S)


def processor_s(pids: Iterable[int]) -> float:
    """Processor time that processes took so far, seconds: what else runs adds less to it than to time on the clock."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def measure(subject: Subject, roles: Roles, images: Path, crypten: Stock | None) -> dict[str, float]:
    """Answer every image in turn by all engines; figures without the network's name in front."""
    spans: defaultdict[str, list[float]] = defaultdict(list)
    spent: defaultdict[str, list[float]] = defaultdict(list)
    wrong: defaultdict[str, float] = defaultdict(float)
    found: dict[str, float] = {}
    with hospital_process.start(roles, "measured", images, roles.folder / "loopback.log") as hospital:
        hospital.answer(PATIENCE_S)
        pids = {"party": roles.party.pid, "dealer": roles.dealer.pid, "hospital": hospital.pid}
        for number in range(len(subject.samples)):
            expected, plain_ms = timed(lambda number=number: subject.plain(number))
            before = processor_s(pids.values())
            offline, online = asked(hospital, number)
            spent["processor_s"].append(processor_s(pids.values()) - before)
            answers = {"plain_s": plain_ms / 1e3, "offline_s": offline["seconds"], "online_s": online["seconds"]}
            theirs = None
            if crypten is not None:
                before = processor_s(crypten.pids)
                theirs = crypten.query(subject.samples[number], PATIENCE_S)
                spent["crypten_processor_s"].append(processor_s(crypten.pids) - before)
                answers["crypten_s"] = theirs["seconds"]
                found |= {"crypten_mb": theirs["bytes"] / 1e6, "crypten_rounds": theirs["rounds"]}
            if number == 0:
                spent.clear()
                continue
            for name, seconds in answers.items():
                spans[name].append(seconds)
            for name, answer in (("logit_error", online), ("crypten_logit_error", theirs)):
                if answer is not None:
                    wrong[name] = max(wrong[name], float(np.abs(np.array(answer["logits"]) - expected).max()))
            found |= {"online_mb": online["bytes"] / 1e6, "party_offline_mb": offline["bytes"] / 1e6}
        memory = {role: resident_mb(pid) for role, pid in pids.items()}
        found["pooled_offline_s"] = pooled(roles, hospital, min(MOST_AFTERWARDS, len(subject.samples) - 1))
    found |= {name: float(np.median(seconds)) for name, seconds in spans.items()} | wrong
    found |= {name: float(np.mean(seconds)) for name, seconds in spent.items()}
    found |= {f"{role}_rss_mb": size for role, size in memory.items()} | {"rss_mb": max(memory.values())}
    found |= {"online_p95_s": float(np.quantile(spans["online_s"], 0.95)), "runs": len(spans["online_s"])}
    if crypten is not None:
        found["crypten_rss_mb"] = crypten.rss_mb()
        found["crypten_ratio"] = found["crypten_s"] / found["online_s"]
    return found


def pooled(roles: Roles, hospital: Child, queries: int) -> float:
    """Median of the offline phase where the dealer has dealt ahead, seconds; the first request places the order."""
    roles.dealer_settings["pool_bundles"] = 1
    roles.start_dealer()
    spans = []
    for number in range(queries + 1):
        offline, _ = asked(hospital, number)
        spans.append(offline["seconds"])
        deadline = time.monotonic() + PATIENCE_S
        while not list((roles.folder / "dealer" / "pool").glob("*/*.bundle")):
            if time.monotonic() > deadline:
                raise RuntimeError("the dealer dealt nothing ahead")
            time.sleep(0.02)
    roles.dealer_settings["pool_bundles"] = 0
    roles.start_dealer()
    return float(np.median(spans[1:]))


@contextlib.contextmanager
def behind(roles: Roles, link: str) -> Iterator[None]:
    """Put a link between each two roles; the party is started anew, since it holds the dealer's address."""
    ports = roles.dealer_port, roles.party_port
    with contextlib.ExitStack() as stack:
        relay = lambda to, name: stack.enter_context(relayed(to, link, roles.folder, name))  # noqa: E731
        try:
            roles.dealer_port = relay(ports[0], "party-dealer")
            roles.start_party()
            roles.dealer_port = relay(ports[0], "hospital-dealer")
            roles.party_port = relay(roles.party_port, "hospital-party")
            yield
        finally:
            roles.dealer_port, roles.party_port = ports


def across(link: str, roles: Roles, images: Path, queries: int) -> dict[str, float]:
    """Ask across a link, once to warm up and then `queries` times."""
    with behind(roles, link), hospital_process.start(roles, "measured", images, roles.folder / f"{link}.log") as child:
        child.answer(PATIENCE_S)
        pairs = [asked(child, number) for number in range(queries + 1)][1:]
    return {
        f"{link}_s": float(np.median([online["seconds"] for _, online in pairs])),
        f"{link}_offline_s": float(np.median([offline["seconds"] for offline, _ in pairs])),
        f"{link}_runs": queries,
    }


def run(
    names: Sequence[str], runs: int | None = None, *, crypten: bool = True, links: Sequence[str] = tuple(LINKS)
) -> tuple[dict[str, float], dict[str, object]]:
    """Measure networks; figures, and what they were compared with.

    Parameters
    ----------
    names : sequence of str
        Of `NETWORKS`.
    runs : int, optional
        Queries that are timed, in place of each network's own number.
    crypten : bool
        Whether to run stock CrypTen beside.
    links : sequence of str
        Of `LINKS`: what to ask across afterwards.
    """
    torch.set_num_threads(1)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"  # for the processes
    found: dict[str, float] = {"load_at_start": os.getloadavg()[0]}
    peers: dict[str, object] = {}
    if crypten:
        peers["crypten"] = "stock 0.4.1, two parties and a trusted third party, gloo on loopback without TLS"
    for name in names:
        build, queries = NETWORKS[name]
        queries = runs or queries
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            roles = Roles(Path(folder), timeout_s=PATIENCE_S)
            roles.dealer_settings["pool_bundles"] = 0  # nothing is dealt while something else is timed
            roles.dealer_settings["timeout_s"] = PATIENCE_S  # for a frame that takes seconds on a slow link
            stack.callback(roles.stop)
            subject = build(roles.models, queries + 1)
            roles.cards["measured"] = subject.card
            images = roles.folder / "images.npy"
            np.save(images, subject.samples)
            roles.start()
            stock = stack.enter_context(Stock(subject.module, subject.samples.shape[1:])) if crypten else None
            measurements = measure(subject, roles, images, stock)
            if stock is not None:
                stock.close()
            for link in links:
                measurements |= across(link, roles, images, min(queries, MOST_AFTERWARDS))
        found |= {f"{name}_{key}": value for key, value in measurements.items()}
    if links:
        with tempfile.TemporaryDirectory() as folder:
            peers["links"] = {link: LINKS[link].describe() | measured(link, Path(folder)) for link in links}
    return found, peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--runs", type=int, help="queries that are timed, in place of each network's own number")
    parser.add_argument("--no-crypten", action="store_true", help="leave stock CrypTen out")
    parser.add_argument("--no-links", action="store_true", help="leave the slow links out")
    given = parser.parse_args()
    logs.configure("bench", "warning")
    links = () if given.no_links else tuple(LINKS)
    figures.write(given.json, *run(given.networks, given.runs, crypten=not given.no_crypten, links=links))


if __name__ == "__main__":
    main()
