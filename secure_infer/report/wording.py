"""The sentences of the reports; each can be understood alone, because viewers may show it alone."""

from __future__ import annotations

from collections.abc import Sequence

from .inputs import Algorithm, AnalysedImage, Answer

#: The order of gravity in which several images of one study speak for the study.
GRAVITY = {"absent": 0, "undetermined": 1, "present": 2}

UNVERIFIED = "This is the preliminary result of an automatic algorithm and has not been verified by a physician."


def overall(images: Sequence[AnalysedImage]) -> Answer:
    """Choose the answer that stands for the study: the gravest, and among equals the most certain of pneumonia."""
    if not images:
        raise ValueError("a report covers one or more images of one study")
    return max((image.answer for image in images), key=lambda answer: (GRAVITY[answer.answer], answer.pneumonia))


def percent(probability: float) -> str:
    """Write a probability as whole percent, never as a certainty that it is not."""
    whole = round(100 * probability)
    if whole == 0 and probability > 0:
        return "<1 %"
    if whole == 100 and probability < 1:
        return ">99 %"
    return f"{whole} %"


def title(answer: Answer) -> str:
    """Name a series so that the answer shows in any list of series, e.g. "AI pneumonia ABSENT 4 % (unverified)"."""
    return f"AI pneumonia {answer.answer.upper()} {percent(answer.pneumonia)} (unverified)"


def comment(answer: Answer) -> str:
    """Put the answer into one sentence."""
    return (
        f"Automatic result, not verified by a physician: pneumonia {answer.answer}, "
        f"estimated probability of pneumonia {_exact(answer.pneumonia)}."
    )


def findings(images: Sequence[AnalysedImage]) -> list[str]:
    """Say what was found in each image, in short sentences: OHIF writes a Finding on one line and cuts longer ones."""
    sentences = []
    for number, image in enumerate(images, start=1):
        where = "" if len(images) == 1 else f"Image {number} of {len(images)}: "
        sentences += [f"{where}{sentence}" for sentence in _finding(image)]
    return sentences


def _finding(image: AnalysedImage) -> list[str]:
    answer = image.answer
    statement = {
        "present": "The algorithm finds signs of pneumonia",
        "absent": "The algorithm finds no signs of pneumonia",
        "undetermined": "The algorithm cannot tell whether there is pneumonia",
    }[answer.answer]
    sentences = [f"{statement}; its estimated probability is {_exact(answer.pneumonia)}."]
    kinds = [f"of {kind} pneumonia {_exact(probability)}" for kind, probability in kinds_of(answer)]
    if kinds:
        sentences.append(f"Estimated probability {' and '.join(kinds)}.")
    if image.region.kind == "evidence":
        sentences.append("The area that speaks for pneumonia is outlined in the measurement report.")
    return sentences


def conclusion(answer: Answer) -> str:
    """Say what the study as a whole shows."""
    return f"Pneumonia {answer.answer.upper()} according to the algorithm ({_exact(answer.pneumonia)})."


def kinds_of(answer: Answer) -> list[tuple[str, float]]:
    """List the kinds of pneumonia worth telling: none where pneumonia is absent, for they would read as a finding."""
    if answer.answer == "absent":
        return []
    kinds = (("bacterial", answer.bacterial), ("viral", answer.viral))
    return [(kind, probability) for kind, probability in kinds if probability is not None]


def parameters(algorithm: Algorithm) -> list[str]:
    """Describe how the algorithm was run, one line each."""
    return [
        f"weights SHA-256: {algorithm.weights_sha256}",
        f"operating point: {algorithm.operating_point}",
        f"engine: {algorithm.engine}",
        f"differential privacy of the training: epsilon {algorithm.epsilon:g}, delta {algorithm.delta:g}",
    ]


def _exact(probability: float) -> str:
    return f"{100 * probability:.1f} %"
