"""A candidate against the active model, on this site's own patients who agreed and are labelled; nothing leaves.

A patient counts once, by its newest labelled study, and a study by its gravest image, as in reports. The difference of
two models on the same patients has a narrower interval than either figure: patients are drawn together for both (paired
percentile bootstrap, Efron & Tibshirani 1993).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from dicom_node.core.database import Database, job
from dicom_node.core.errors import Refused
from dicom_node.study import CLASSIFY
from dicom_node.training.diagnosis import Diagnosis
from secure_infer.answer import Answer
from secure_infer.card import ModelCard
from secure_infer.clear import PlaintextEngine
from secure_infer.models import Weights
from secure_infer.public import public_part

from ..figures import Interval, auc, bootstrap, pneumonia_metrics
from ..site_images import AgreedStudy, SiteImages, usable

Images = Sequence[NDArray[np.float32]]
#: 0 normal, 1 bacterial, 2 viral as everywhere; 3 is pneumonia whose kind nobody named.
LABELS: Final = {Diagnosis.NORMAL: 0, Diagnosis.BACTERIAL: 1, Diagnosis.VIRAL: 2, Diagnosis.PNEUMONIA: 3}
KIND_UNKNOWN: Final = 3
PNEUMONIA: Final = ("auc_pneumonia", "sensitivity_at_half", "specificity_at_half")
KINDS: Final = "auc_bacterial_viral"
REPLICATES: Final = 2000


class Model(Protocol):
    """Answers a study."""

    def answer(self, study: AgreedStudy, images: Images) -> Answer | None:
        """Return the study's answer, None where this model never gave one."""


class InTheClear:
    """A model whose weights are here.

    Parameters
    ----------
    card : ModelCard
    weights : dict
        From `ModelStore.weights`, so verified.
    """

    def __init__(self, card: ModelCard, weights: Weights) -> None:
        self._card = card
        self._public = public_part(card)
        self._engine = PlaintextEngine(card.suffix, weights)

    def answer(self, study: AgreedStudy, images: Images) -> Answer | None:
        """Answer by the gravest image; see `Model`."""
        found = []
        for image in images:
            try:
                logits = self._engine.infer(self._public.features(image)).logits
            except Refused:
                continue  # beyond the model's proven range: in service, too, it gets no answer
            found.append(Answer.from_logits(logits, self._card))
        return max(found, key=lambda one: one.pneumonia, default=None)


class AsReported:
    """A model that this site uses without its weights: what it answered when the studies came.

    Parameters
    ----------
    database : Database
        The site's records.
    card : ModelCard
    """

    def __init__(self, database: Database, card: ModelCard) -> None:
        done = sa.select(job.c.study_id, job.c.result).where(job.c.kind == CLASSIFY, job.c.state == "done")
        with database.read() as connection:
            rows = connection.execute(done.order_by(job.c.id)).all()
        self._answers = {
            row.study_id: Answer(*(row.result[key] for key in ("answer", "pneumonia", "bacterial", "viral")))
            for row in rows
            if row.result["weights_sha256"] == card.weights_sha256
        }

    def answer(self, study: AgreedStudy, images: Images) -> Answer | None:
        """Look up the newest answer; see `Model`."""
        return self._answers.get(study.study_id)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same patients.

    Attributes
    ----------
    ill, healthy : int
        Patients that both answered.
    left_out : dict of str to int
        How many other labelled patients there are, by the reason.
    candidate, active : dict of str to Interval
        Figures by name; those that the patients do not allow are absent.
    gain : Interval or None
        The candidate's pneumonia AUC less the active model's; None without both ill and healthy patients.
    """

    ill: int
    healthy: int
    left_out: dict[str, int]
    candidate: dict[str, Interval]
    active: dict[str, Interval]
    gain: Interval | None


def evaluate(
    images: SiteImages,
    candidate: Model,
    active: Model,
    now: float,
    done: Callable[[int, int], None],
    replicates: int = REPLICATES,
) -> Comparison:
    """Answer every labelled patient who agrees at `now` with both models, and compare.

    Parameters
    ----------
    now : float
        Seconds since the epoch.
    done : callable
        Called with (patients done, of all).
    replicates : int
        Of the bootstrap.
    """
    labels: list[int] = []
    answers: list[tuple[Answer, Answer]] = []
    left_out: Counter[str] = Counter()
    agreed = images.agreed(now)
    for number, study in enumerate(agreed, start=1):
        seen, reason = usable(study.digests, images.image)
        new = candidate.answer(study, seen) if seen else None
        old = active.answer(study, seen) if new is not None else None
        if new is not None and old is not None:
            labels.append(LABELS[study.label])
            answers.append((new, old))
        else:
            left_out[reason if not seen else "no-answer" if new is None else "not-answered-by-active"] += 1
        done(number, len(agreed))
    found = np.array(labels, dtype=np.int64)
    new_ones, old_ones = (_probabilities([pair[which] for pair in answers]) for which in (0, 1))
    return Comparison(
        ill=int((found > 0).sum()),
        healthy=int((found == 0).sum()),
        left_out=dict(left_out),
        candidate=_figures(new_ones, found, replicates),
        active=_figures(old_ones, found, replicates),
        gain=_gain(new_ones, old_ones, found, replicates),
    )


def _probabilities(answers: Sequence[Answer]) -> NDArray[np.float64]:
    rows = [(1.0 - one.pneumonia, one.bacterial, one.viral) for one in answers]
    return np.array(rows, dtype=np.float64).reshape(len(rows), 3)


def _figures(probabilities: NDArray[np.float64], labels: NDArray[np.int64], replicates: int) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    if _has_both(labels > 0):
        metrics = pneumonia_metrics(probabilities, labels)
        found |= {name: bootstrap(metrics[name], np.arange(len(labels)), replicates=replicates) for name in PNEUMONIA}
    kind = (labels > 0) & (labels != KIND_UNKNOWN)
    if _has_both(labels[kind] == 1):
        metric = pneumonia_metrics(probabilities[kind], labels[kind])[KINDS]
        found[KINDS] = bootstrap(metric, np.arange(int(kind.sum())), replicates=replicates)
    return found


def _gain(
    new: NDArray[np.float64], old: NDArray[np.float64], labels: NDArray[np.int64], replicates: int
) -> Interval | None:
    ill = labels > 0
    if not _has_both(ill):
        return None

    def gained(weights: NDArray[np.float64]) -> float:
        return auc(1.0 - new[:, 0], ill, weights) - auc(1.0 - old[:, 0], ill, weights)

    return bootstrap(gained, np.arange(len(labels)), replicates=replicates)


def _has_both(positive: NDArray[np.bool_]) -> bool:
    return bool(positive.any() and not positive.all())
