"""How long a department waits: from the last byte of a study to its delivered Structured Report.

Run: ``python -m tests.bench.e2e --json FILE``. Fifty studies, one after another, through the real processes with the
encrypted engine; the PACS is Orthanc. The quiet period, a setting of the site, is taken off. Beside it, the share of
each step, and the same with the plaintext engine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node import phantom, scu
from dicom_node.demo import watch
from dicom_node.demo.orthanc_server import OrthancServer
from dicom_node.demo.site import PACS_AE
from dicom_node.demo.stack import Stack
from dicom_node.demo.watch import Seen
from tests.bench import figures

QUIET_S = 0.5


def measure(engine: str, studies: int) -> tuple[list[float], list[Seen]]:
    """Seconds from the last acknowledged byte to the delivery of the last report, without the quiet period."""
    waits, seen = [], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with Stack(folder, quiet_s=QUIET_S, engine=engine) as stack:
            pacs = OrthancServer(aet=PACS_AE, modalities={"veilray": (stack.ae_title, "127.0.0.1", stack.scp_port)})
            with pacs:
                stack.start(pacs.dicom_port)
                for number in range(1, studies + 1):
                    kind = phantom.KINDS[number % len(phantom.KINDS)]
                    study = phantom.Study.numbered(number, key=f"e2e-{engine}")
                    path = folder / "next.dcm"
                    phantom.dataset(phantom.draw(number, kind), study=study).save_as(path, enforce_file_format=True)
                    peer = {"host": "127.0.0.1", "port": stack.scp_port, "called": stack.ae_title}
                    (outcome,) = scu.send([path], **peer, calling=stack.sender_ae)
                    sent_at = time.time()
                    if not outcome.ok:
                        raise SystemExit(f"study {number} was not taken: {outcome.meaning}")
                    ((_, one),) = watch.follow(stack.settings.database_url, [study.study_uid], 60.0, poll_s=0.02)
                    waits.append(one.finished_at - sent_at - QUIET_S)
                    seen.append(one)
                held = pacs.find(Modality="SR")
                if len(held) != 2 * studies:
                    raise SystemExit(f"the PACS holds {len(held)} reports, not {2 * studies}")
    return waits, seen


def run(studies: int) -> tuple[dict[str, float], dict[str, Any]]:
    waits, seen = measure("dealt-2pc", studies)
    plain, _ = measure("plaintext", studies)
    steps = {
        f"e2e_{name}_median_s": float(np.median([one.newest.result["seconds"][name] for one in seen]))
        for name in ("pixels", "trunk", "engine", "report")
    }
    found = {
        "e2e_median_s": float(np.median(waits)),
        "e2e_p95_s": float(np.percentile(waits, 95)),
        "e2e_studies": float(studies),
        **steps,
    }
    peers = {"plaintext": {"e2e_median_s": float(np.median(plain)), "e2e_p95_s": float(np.percentile(plain, 95))}}
    return found, peers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=50)
    arguments = parser.parse_args()
    figures.write(arguments.json, *run(arguments.studies))


if __name__ == "__main__":
    main()
