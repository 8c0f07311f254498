"""A site of real processes whose model is a whole private network: from DICOM to the report, and to another model.

The other one is a head that was trained under differential privacy, handed over by its publisher, and taken back.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import Comprehensive3DSRStorage, EnhancedSRStorage

from dicom_node import phantom, pixels, scu
from dicom_node.core.database import Database
from dicom_node.demo import watch
from dicom_node.demo.pacs import OwnPacs
from dicom_node.demo.stack import Stack
from fl_agent.accounting import epsilon
from fl_agent.deep import Deep, make
from fl_agent.handover.candidates import Candidates
from fl_agent.head import train_head
from fl_agent.randomness import SecureSource
from fl_agent.train import Recipe
from fl_agent.trainset import Films
from secure_infer.answer import Answer
from secure_infer.card import ModelCard
from secure_infer.models import ModelStore, encode_weights
from secure_infer.network import Trunk
from secure_infer.trunks import LITE0
from tests.secure_infer.small_model import PUBLISHER, PUBLISHER_HEX, card_of, head
from tests.system.sites import command, names, report

DELTA = 1e-2
TAP = "block13"


def untrained() -> Deep:
    """The small network with random weights, its head scaled up so that answers differ."""
    torch.manual_seed(5)
    made = make("small-cnn")
    with torch.no_grad():
        made.network.head.weight.mul_(8.0)
    return made


def trained(root: Path) -> Path:
    """Train a head under differential privacy on nine phantoms, and publish it as the coordinator does."""
    trunk = Trunk((TAP,))
    labels = np.arange(9) % 3
    drawn = [phantom.draw(number, phantom.KINDS[labels[number]], (256, 320)) for number in range(9)]
    pooled = np.stack([trunk.features(pixels.from_picture(one)).mean((1, 2))[None] for one in drawn])
    films = Films(("",) * 9, ("",) * 9, labels, np.arange(9))
    recipe = Recipe(steps=5, sampling_rate=1.0, clip=0.5, learning_rate=1.0, momentum=0.0)
    weights, mechanisms = train_head(
        pooled.astype(np.float32), films, (2.5, DELTA), SecureSource(), lambda *_: None, recipe
    )
    encoded = encode_weights({**weights, "head.weight": weights["head.weight"][..., None, None]})
    written = card_of(head(trunk.channels, 3, side=7, fraction=20), encoded, "2.0.0").model_dump(mode="json")
    written["trunk"] |= {"sha256": LITE0.sha256, "taps": [TAP]}
    written["privacy"] |= {
        "epsilon": math.ceil(epsilon(mechanisms, DELTA) * 1000) / 1000,
        "delta": DELTA,
        "mechanisms": [one.model_dump(mode="json") for one in mechanisms],
    }
    return ModelStore(root, [PUBLISHER_HEX]).publish(ModelCard.model_validate(written), encoded, PUBLISHER)


@pytest.fixture(scope="module")
def network() -> Deep:
    return untrained()


@pytest.fixture(scope="module")
def site(network: Deep, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, OwnPacs, ModelCard]]:
    """Every process on loopback; the hospital holds the card alone, the model owner the weights."""
    folder = tmp_path_factory.mktemp("private")
    compiled = network.compiled()
    weights = encode_weights(compiled.weights)
    greys = network.public
    content = card_of(compiled.program, weights, "network-1").model_dump(mode="json") | {"trunk": None}
    content["preprocessing"] |= {"side": greys.side, "offset": greys.offset, "divisor": greys.divisor}
    card = ModelCard.model_validate(content)
    owner = ModelStore(folder / "owner", [PUBLISHER_HEX])
    owner.publish(card, weights, PUBLISHER)
    with Stack(folder, quiet_s=0.3, models=folder / "owner", publishers=[PUBLISHER_HEX]) as stack:
        hospital = ModelStore(folder / "state" / "models", [PUBLISHER_HEX])
        hospital.install(folder / "owner" / card.version)
        hospital.activate(card.version)
        pacs = OwnPacs(folder / "pacs", stack.own_pacs_port, (stack.ae_title,))
        stack.start(pacs_port=pacs.dicom_port)
        yield stack, pacs, card
        pacs.close()


def expected(network: Deep, card: ModelCard, dataset: pydicom.Dataset) -> Answer:
    """What the network says in the clear."""
    features = network.public.features(pixels.from_dataset(dataset).image)
    with torch.inference_mode():
        logits = network.network.eval()(torch.from_numpy(features)[None].float())[0].double().numpy()
    return Answer.from_logits(logits, card)


def test_a_study_is_reported_by_a_network_whose_every_weight_is_private(site, network: Deep, tmp_path: Path) -> None:
    stack, pacs, card = site
    assert not list((stack.folder / "state").rglob("*.safetensors"))
    studies, answers = [], []
    for number, kind in enumerate(phantom.KINDS):
        study = phantom.Study.numbered(number, key="private")
        dataset = phantom.dataset(phantom.draw(number, kind, (256, 320)), study=study)
        path = tmp_path / f"{number}.dcm"
        dataset.save_as(path, enforce_file_format=True)
        (sent,) = scu.send(
            [path], host="127.0.0.1", port=stack.scp_port, called=stack.ae_title, calling=stack.sender_ae
        )
        assert sent.ok
        studies.append(study.study_uid)
        answers.append(expected(network, card, dataset))
    assert "present" in {answer.answer for answer in answers}  # the answer that would have an outline, were there a map
    for uid, (_, seen) in zip(studies, watch.follow(stack.settings.database_url, studies, 90.0), strict=True):
        result, answer = seen.newest.result, answers[studies.index(uid)]
        assert (result["model"], result["engine"], result["answer"]) == ("network-1", "dealt-2pc", answer.answer)
        found = [result[name] for name in ("pneumonia", "bacterial", "viral")]
        np.testing.assert_allclose(found, [answer.pneumonia, answer.bacterial, answer.viral], atol=1e-3)
        reports = [pydicom.dcmread(io.BytesIO(content)) for content in pacs.reports(uid)]
        assert sorted(one.SOPClassUID for one in reports) == sorted([Comprehensive3DSRStorage, EnhancedSRStorage])
        text = "\n".join(str(one) for one in reports)
        # A network gives no map, so even a positive report frames what was analysed and claims no place.
        assert "outlined" not in text
        assert "network-1" in text


def test_a_trained_candidate_answers_the_next_study_and_the_one_before_answers_after_a_roll_back(site) -> None:
    stack, pacs, old = site
    with (stack.folder / "site.toml").open("a") as file:
        file.write(f'\n[training.handover]\npublisher = "{PUBLISHER_HEX}"\n')
    made = trained(stack.folder / "coordinator")
    database = Database(stack.settings.database_url)
    candidates = Candidates(stack.settings, database)
    new = candidates.receive(made)
    candidates.accept(new.version, "Dr. A")
    database.close()
    assert new.weights_sha256 == hashlib.sha256((made / "weights.safetensors").read_bytes()).hexdigest()
    assert new.privacy.epsilon != old.privacy.epsilon

    first = report(stack, pacs, 1)
    assert names(old, first)
    assert not names(new, first)

    worker = stack.services["worker"].pid
    said = command(stack, "activate", new.version, "--party-models", str(stack.folder / "owner"))
    assert "2.0.0 answers from the next study on" in said
    second = report(stack, pacs, 2)
    assert names(new, second)
    assert old.weights_sha256 not in second

    assert f"{old.version} answers again" in command(stack, "rollback")
    assert names(old, report(stack, pacs, 3))
    assert stack.services["worker"].pid == worker
    assert stack.alive
