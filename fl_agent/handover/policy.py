"""Whether a comparison is good enough by the site's rules: a test for non-inferiority (ICH E9, 3.3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dicom_node.core.training_settings import HandoverSettings

if TYPE_CHECKING:
    from .evaluation import Comparison


def objections(comparison: Comparison, rules: HandoverSettings) -> tuple[str, ...]:
    """Say what speaks against the candidate; nothing does where the result is empty."""
    found = []
    for count, who in ((comparison.ill, "ill"), (comparison.healthy, "healthy")):
        if count < rules.minimal_patients:
            found.append(
                f"{count} {who} patients were compared, training.handover.minimal_patients is {rules.minimal_patients}"
            )
    gain = comparison.gain
    if gain is None:
        found.append("pneumonia AUC cannot be compared without both ill and healthy patients")
    elif gain.low < -rules.maximal_auc_drop:
        found.append(
            f"pneumonia AUC may be {-gain.low:.3f} lower (95 %), training.handover.maximal_auc_drop is "
            f"{rules.maximal_auc_drop:g}"
        )
    return tuple(found)
