"""The hospital of a bench as a process of its own, without torch: what it holds is what the encrypted engine needs.

Run by `tests.bench.mpc`: ``python -m tests.bench.hospital_process FILE``, with the settings in FILE.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.core import logs
from dicom_node.core.settings import InferenceSettings
from secure_infer.card import ModelCard
from secure_infer.dealt import DealtEngine
from secure_infer.operations import memory
from secure_infer.transport.channel import Channel
from tests.bench.children import Child, serve
from tests.bench.inference import timed
from tests.system.roles import Roles


def start(roles: Roles, card: str, images: Path, log: Path) -> Child:
    """Start a hospital that asks the roles about the images of a file (`numpy.save`)."""
    settings = {
        "card": roles.cards[card].model_dump(mode="json"),
        "inference": roles.inference(timeout_s=120.0).model_dump(mode="json"),
        "state_dir": str(log.parent / log.stem),
        "images": str(images),
    }
    file = log.with_suffix(".json")
    file.write_text(json.dumps(settings))
    return Child(["-m", "tests.bench.hospital_process", str(file)], log)


def total(channel: Channel) -> int:
    """Bytes of frames since the connection was taken for this query."""
    return channel.sent + channel.received


def main(file: Path) -> None:
    logs.configure("hospital", "warning")
    memory.keep()  # as a worker does
    given = json.loads(file.read_text())
    card = ModelCard.model_validate(given["card"])
    engine = DealtEngine(card, InferenceSettings.model_validate(given["inference"]), Path(given["state_dir"]))
    images = np.load(given["images"], mmap_mode="r")
    ready: list[Any] = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["step"] == "offline":
            prepared, milliseconds = timed(engine._prepare)
            ready.append(prepared)
            return {"seconds": milliseconds / 1e3, "bytes": total(prepared.channel)}
        prepared, image = ready.pop(), np.array(images[request["image"]])
        before = total(prepared.channel)
        found, milliseconds = timed(lambda: engine._query(prepared, image))
        count = total(prepared.channel) - before
        return {"seconds": milliseconds / 1e3, "bytes": count, "logits": found.logits.tolist()}

    serve(answer)
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
