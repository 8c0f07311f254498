"""A site's ledger on a database; as a program, one process that works on it and may be told where to die.

`python -m tests.fl_agent.ledger.site URL reserve STEPS` prints a token or a refusal's code; `begin`, `spend` and
`release` take a token.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from dicom_node.core.database import Database
from dicom_node.core.errors import Refused
from dicom_node.core.training_settings import PrivacySettings
from fl_agent.ledger.ledger import Ledger
from secure_infer.card import Mechanism

LIMITS = PrivacySettings(epsilon=4.0, delta=1e-5)


def training(steps: int = 100, multiplier: float = 4.0, rate: float = 0.1, patients: int = 500) -> Mechanism:
    """DP-SGD at this site."""
    return Mechanism(
        name="head", partition="training", kind="DP-SGD", patients=patients, sampling_rate=rate,
        noise_multiplier=multiplier, clip=1.0, steps=steps,
    )  # fmt: skip


def reserve(ledger: Ledger, steps: int = 100, **names: Any) -> str:
    return ledger.reserve(training(steps), **{"run": "r", "model": "m", **names})


def start(url: str, *arguments: str, failpoint: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "VEILRAY_FAILPOINT": failpoint}
    command = [sys.executable, "-m", "tests.fl_agent.ledger.site"]
    return subprocess.Popen(
        [*command, url, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def main() -> None:
    url, action, argument = sys.argv[1:4]
    database = Database(url)
    ledger = Ledger(database, LIMITS)
    if action == "reserve":
        try:
            print(reserve(ledger, int(argument)), flush=True)
        except Refused as error:
            print(error.code, flush=True)
    elif action == "contend":  # tells when it is ready, waits for a line, then reserves until it is refused
        print("ready", flush=True)
        sys.stdin.readline()
        taken = 0
        while True:
            try:
                reserve(ledger, int(argument))
            except Refused:
                break
            taken += 1
        print(taken, flush=True)
    else:
        getattr(ledger, action)(argument)
    database.close()


if __name__ == "__main__":
    main()
