"""What the fork server of `forked` imports once, with the compiled loops in memory as a service's self-test."""

from __future__ import annotations

import dicom_node.serve  # noqa: F401
import fl_agent.coordinator.service  # noqa: F401
import secure_infer.dealer
import secure_infer.party
import secure_infer.service  # noqa: F401
import tests.secure_infer.small_model
import tests.system.hospital_agent  # noqa: F401
from secure_infer import selftest

for bits in selftest.SHIFTS:
    selftest.run(bits)
