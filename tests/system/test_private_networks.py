"""A site whose model is a whole private network: from DICOM to the report, through every process, without Orthanc."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import Comprehensive3DSRStorage, EnhancedSRStorage

from dicom_node import phantom, pixels, scu
from dicom_node.demo import watch
from dicom_node.demo.pacs import OwnPacs
from dicom_node.demo.stack import Stack
from fl_agent.deep import Deep, make
from secure_infer.answer import Answer
from secure_infer.card import ModelCard
from secure_infer.models import ModelStore, encode_weights
from tests.secure_infer.small_model import PUBLISHER, PUBLISHER_HEX, card_of


def untrained() -> Deep:
    """The small network with random weights, its head scaled up so that answers differ."""
    torch.manual_seed(5)
    made = make("small-cnn")
    with torch.no_grad():
        made.network.head.weight.mul_(8.0)
    return made


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
