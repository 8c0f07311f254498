"""Model owner and dealer as real processes with throw-away certificates, and hospitals that ask them.

As a program, `python -m tests.system.roles ROLE FILE` is one of the three roles with the settings in FILE.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dicom_node.core import logs, tls
from dicom_node.core.pki import Authority
from dicom_node.core.settings import EndpointSettings, InferenceSettings, TlsSettings
from dicom_node.launch import Service
from secure_infer import dealer, party, protocol, selftest
from secure_infer.card import ModelCard
from secure_infer.dealt import DealtEngine
from secure_infer.models import ModelStore
from secure_infer.program import Program
from secure_infer.protocol.deal import materials
from secure_infer.protocol.manifest import verified
from secure_infer.protocol.messages import Deal, Open
from secure_infer.protocol.plan import Plan
from secure_infer.protocol.prg import Context
from secure_infer.transport.channel import Channel
from tests.secure_infer.small_model import PUBLISHER_HEX, head, publish
from tests.system import holdings

#: The default model's head, and the same head for hospitals that shall see no map.
MAP = head(1280, 3, side=7, fraction=20, output=4096.0)
POOLED = head(1280, 3, side=1, fraction=20, output=4096.0)
HOSPITALS = ("hospital", "second")
#: Longer than any frame of the protocol here.
LARGE = 1 << 20


class Roles:
    """The folder, certificates, models and processes of one test.

    `party_settings` and `dealer_settings` may be changed: `write` puts them where the services look for them.
    """

    def __init__(
        self,
        folder: Path,
        hospitals: tuple[str, ...] = HOSPITALS,
        service: type[Service] = Service,
        **party_settings: Any,
    ) -> None:
        self.folder, self._kind = folder, service
        self.authority = Authority(folder / "pki")
        crl = self.authority.revoke()
        self.tls: dict[str, TlsSettings] = {
            name: self.authority.issue(name) for name in (*hospitals, "party", "dealer", "stranger")
        }
        for name in ("party", "dealer"):
            self.tls[name] = self.tls[name].model_copy(update={"crl": crl})
        self.models = folder / "models"
        self.cards = {
            "map": publish(self.models, MAP, version="map"),
            "pooled": publish(self.models, POOLED, version="pooled"),
        }
        allowed = tuple(self.fingerprint(name) for name in hospitals)
        self.dealer_port = self.party_port = 0
        self.between: EndpointSettings | None = None  # where party 1 finds the dealer, if not at its own place
        self.dealer_settings: dict[str, Any] = {
            "hospitals": allowed, "parties": (self.fingerprint("party"),), "timeout_s": 2.0, "metrics_port": 0,
            "pool_bundles": 2,
        }  # fmt: skip
        rate = {"queries_per_minute": 1e5, "burst": 10**5}
        self.party_settings = {"hospitals": allowed, "timeout_s": 2.0, "metrics_port": 0, **rate, **party_settings}
        self.dealer = self._service("dealer")
        self.party = self._service("party")

    def fingerprint(self, name: str) -> str:
        return tls.fingerprint(self.tls[name].certificate)

    def write(self, role: str) -> None:
        """Write the settings file of a service; a running one takes up what it can."""
        made: Any
        if role == "dealer":
            key = self.folder / "dealer" / "master.key"
            made = dealer.DealerSettings(
                port=self.dealer_port, tls=self.tls["dealer"], master_key=key, **self.dealer_settings
            )
        else:
            made = party.PartySettings(
                port=self.party_port,
                tls=self.tls["party"],
                dealer=self.between or self.endpoint("dealer"),
                models=self.models,
                state_dir=self.folder / "party",
                trusted_publishers=(PUBLISHER_HEX,),
                **self.party_settings,
            )
        self.put(role, toml(made.model_dump(mode="json")))

    def put(self, role: str, text: str) -> None:
        """Replace a settings file in one step: a service that looks meanwhile sees no half of it."""
        whole = self.folder / f"{role}.toml.new"
        whole.write_text(text)
        whole.replace(self.settings_file(role))

    def settings_file(self, role: str) -> Path:
        return self.folder / f"{role}.toml"

    def trail(self, role: str) -> Path:
        """The audit trail of a service."""
        return self.folder / role / "audit.sqlite3"

    def holdings(self, role: str) -> holdings.Holdings:
        """Look at what a service holds."""
        pid = self.dealer.pid if role == "dealer" else self.party.pid
        return holdings.ask(pid, held(self.settings_file(role)))

    def _service(self, role: str, environment: dict[str, str] | None = None, program: str = "") -> Service:
        command = [sys.executable, "-m", "tests.system.roles", program or role, str(self.settings_file(role))]
        return self._kind(role, command, self.folder, environment)

    def start_dealer(self, failpoint: str = "", program: str = "dealer") -> None:
        self.write("dealer")
        self.dealer.stop()  # also collects one that a fail point has killed
        self.dealer = self._service("dealer", {"VEILRAY_FAILPOINT": failpoint}, program)
        self.dealer.start()
        self.dealer_port = self.dealer.wait_ready()["port"]  # a restart comes back to the same port

    def start_party(self, failpoint: str = "") -> None:
        self.write("party")
        self.party.stop()
        self.party = self._service("party", {"VEILRAY_FAILPOINT": failpoint})
        self.party.start()
        self.party_port = self.party.wait_ready()["port"]

    def start(self) -> None:
        self.start_dealer()
        self.start_party()

    def stop(self) -> None:
        self.party.kill()
        self.dealer.kill()

    def endpoint(self, role: str) -> EndpointSettings:
        port = self.dealer_port if role == "dealer" else self.party_port
        return EndpointSettings(host="127.0.0.1", port=port, fingerprint=self.fingerprint(role))

    def inference(self, who: str = "hospital", *, prefetch: int = 0, **other: Any) -> InferenceSettings:
        given = {"party": self.endpoint("party"), "dealer": self.endpoint("dealer"), "timeout_s": 5.0, **other}
        given.setdefault("audit_one_in", 0)  # a bundle given up for an audit would upset whoever counts them
        return InferenceSettings(tls=self.tls[who], prefetch=prefetch, **given)

    def engine(self, card: ModelCard | str = "map", who: str = "hospital", **other: Any) -> DealtEngine:
        chosen = self.cards[card] if isinstance(card, str) else card
        return DealtEngine(chosen, self.inference(who, **other), self.folder / who)

    def channel(self, role: str, who: str = "hospital", timeout_s: float = 5.0) -> Channel:
        """A connection for a test that does not keep to the protocol."""
        return Channel.dial(self.endpoint(role), tls.client_context(self.tls[who]), role, timeout_s)

    def answered(self, bundle_id: str) -> dict[str, Any]:
        """The party's log line of a query, which it writes after it has sent its answer."""
        deadline = time.monotonic() + 60
        while True:
            for line in self.party.lines():
                if (line["event"], line.get("bundle_id")) == ("query-answered", bundle_id):
                    return line
            assert time.monotonic() < deadline, "party 1 did not log the query"
            time.sleep(0.02)

    def weights(self, version: str = "map") -> dict[str, np.ndarray]:
        return ModelStore(self.models, [PUBLISHER_HEX]).weights(version)


def toml(values: dict[str, Any]) -> str:
    """Write settings as a service reads them: JSON's scalars and lists are TOML's, too."""
    tables = {name: value for name, value in values.items() if isinstance(value, dict)}
    lines = [
        f"{json.dumps(name)} = {json.dumps(value)}"
        for name, value in values.items()
        if name not in tables and value is not None
    ]
    return "\n".join([*lines, *(f"[{name}]\n{toml(value)}" for name, value in tables.items())])


def features(seed: int = 0, made: Program = MAP) -> np.ndarray:
    """Positive, mostly small features, as a trunk that ends in ReLU6 gives them."""
    return np.random.default_rng(seed).exponential(0.5, size=(made.input_shape[0], 7, 7)).clip(0, 6)


def ask(engine: DealtEngine, seed: int = 0) -> np.ndarray:
    try:
        return engine.infer(features(seed)).logits
    finally:
        engine.close()


def plain(roles: Roles, seed: int = 0) -> np.ndarray:
    from secure_infer.clear import PlaintextEngine  # torch, which a hospital of the bench does without

    return PlaintextEngine(MAP, roles.weights()).infer(features(seed)).logits


def wait_until(true: Callable[[], bool], otherwise: str) -> None:
    """Wait for what a service does after it has answered, such as its log lines and the rows of its trail."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


def wait_for_bundles(engine: DealtEngine, count: int) -> None:
    wait_until(lambda: len(engine._ready) >= count, "no bundle was fetched ahead")


def bundle_for(roles: Roles, who: str = "hospital") -> Open:
    """Have a bundle dealt; what the hospital would tell party 1 about it."""
    engine = roles.engine(who=who)
    terms = engine._terms
    engine.close()
    with roles.channel("dealer", who) as dealer:
        dealer.send(Deal(terms.model, terms.party, terms.key.public_key().public_bytes_raw(), terms.plan.encoded))
        dealt = dealer.receive(LARGE)
    return Open(dealt.bundle, terms.model, verified(dealt.signed, terms.dealer).digest, 0)


def forged(plan: Plan, seed: bytes, context: Context, mask_seed: bytes) -> Iterator[bytes]:
    """Material with a wrong byte in each layer, which the dealer then signs as if it were right."""
    for part in materials(plan, seed, context, mask_seed):
        altered = bytearray(part)
        altered[0] ^= 0xFF if context.model != selftest.MODEL else 0
        yield bytes(altered)


def held(settings: Path) -> Path:
    """Where a service with these settings tells what it holds."""
    return settings.with_suffix(".held")


def main(role: str, file: str) -> int:
    logs.configure(role)
    if role == "forger":
        protocol.dealer.materials = forged
    if role in ("dealer", "forger", "party"):
        holdings.tell_on_signal(held(Path(file)))
        return (party if role == "party" else dealer).serve(Path(file))
    given = json.loads(Path(file).read_text())
    card = ModelCard.model_validate_json(Path(given["card"]).read_bytes())
    settings = InferenceSettings.model_validate(given["inference"])
    engine = DealtEngine(card, settings, Path(given["state_dir"]))
    found = engine.infer(features(given["seed"]))
    engine.close()
    print(json.dumps({"logits": found.logits.tolist(), "evidence": found.evidence.tolist()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
