"""The sentences of the model card of the paediatric pneumonia model."""

from __future__ import annotations

INTENDED_USE = (
    "Second reading of frontal chest radiographs of children of 1 to 5 years for pneumonia, bacterial or viral; "
    "for research and evaluation, not for diagnosis without a physician's own reading."
)
NORMALISATION = (
    "Each stage named in trunk.taps is averaged to 7 x 7 positions and divided by the norm of its mean over positions"
    " times the square root of the number of taps; the stages stand behind each other along the channels; values are "
    "clipped to plus or minus suffix.input_bound. Where trunk.regions is 2, each stage comes as four copies of its "
    "channels, one for each quarter of the 7 x 7 positions, row by row: four times the position's share in that "
    "quarter, the middle row and column belonging to both sides by half. Logits are the mean over positions of weight"
    " x feature + bias."
)
NO_NORMALISATION = (
    "None: the scaled image enters the private part, or, where trunk names a cut, the output of that stage. Logits are "
    "what the private part gives."
)
CALIBRATION = (
    "Inverse temperature and one offset for each class by DP-SGD on the validation patients, each patient counting "
    "once; the three classes are about equally frequent among them. Quarters, where given, are means over the same "
    "patients by the Gaussian mechanism"
)
DATA = (
    "Kermany, Zhang, Goldbaum: Labeled Optical Coherence Tomography (OCT) and Chest X-Ray Images for Classification, "
    "Mendeley Data rscbjbr9sj; Kermany et al., Cell 172 (2018) 1122-1131; Guangzhou Women and Children's Medical "
    "Center; copy at 224 x 224 grey without the 16 images of Kaggle's extra validation folder"
)
DATA_LICENCE = "CC BY 4.0; attribution: Kermany, Zhang, Goldbaum (2018); changes: resized, exact duplicates dropped"
ACCOUNTANT = (
    "Opacus PRVAccountant (Gopi et al. 2021), upper end of its error. The mechanisms of one partition compose; the "
    "partitions share no patient, so the largest epsilon holds for every patient (parallel composition). The numbers "
    "of patients count as public."
)
NOISE = (
    "Gaussian, from AES-256-CTR keyed by the operating system's random numbers, key not kept; four draws for each "
    "number against attacks through the gaps between floating-point numbers (Holohan & Braghin 2021)"
)
NOT_COVERED = (
    "The recipe (trunk, its depths and regions, steps, clip, learning rate) was chosen among about 100 candidates by "
    "their figures on divisions of the training and validation patients; epsilon does not cover what that choice "
    "tells. The figures are plain statistics of the test patients, who are in no other split."
)
NOT_COVERED_DEEP = (
    "The recipe (steps, sampling rate, clip, learning rate) is a default that was tuned on nobody's images. Bounds and "
    "limits in the card come from drawn phantoms and noise, not from patients. The figures are plain statistics of the "
    "test patients, who are in no other split."
)
FIGURES = (
    "Evaluated once, on the test split without its exact duplicates, after everything was fixed; 95 % intervals by "
    "bootstrap over patients. auc_bacterial_viral looks at pneumonia images alone. The test images come from other "
    "children of the same hospital, in other proportions than the training images. This recipe was chosen on training"
    " and validation patients alone, by a rule that was written before. Earlier recipes had been evaluated on the "
    "same test split: three on a smaller trunk, and before them an experiment with one image as the unit of privacy, "
    "which suggested features of three depths. What they did there had no part in the choice."
)
#: What is so of every model that these data train.
COMMON_LIMITS = (
    "Children of 1 to 5 years from one hospital in Guangzhou; never tested on adults, neonates or other hospitals.",
    "The data set's authors call the images anterior-posterior; how many are posterior-anterior is not recorded.",
    "The network sees the image squashed to a square, as its training images were; the field of view matters.",
    "Labels are noisy: one radiologist disagrees with one label in three. Most disagreement is about the kind.",
    "The training knew three answers alone: other findings (effusion, heart failure, devices) were not labelled.",
    "Probabilities hold where normal, bacterial and viral are about equally frequent; elsewhere they must be shifted.",
)
#: What is so of the kind of network, whatever it learned from.
HEAD_LIMITS = ("The evidence map shows which positions moved the logits; it does not outline a lesion.",)
DEEP_LIMITS = ("The network gives no map of evidence: reports outline the analysed area alone.",)
TEST_OWN = "Test is the data set's own."
TEST_LISTED = "Test is who the site's list puts there."
#: Of a research site's folder.
CALIBRATION_ELSEWHERE = (
    "Inverse temperature and one offset for each class by DP-SGD on the validation patients, each patient counting "
    "once; probabilities hold where the classes are as frequent as there. Quarters, where given, are means over the "
    "same patients by the Gaussian mechanism"
)
FIGURES_ELSEWHERE = (
    "Evaluated once, on the test patients, after everything was fixed; 95 % intervals by bootstrap over patients. "
    "auc_bacterial_viral looks at pneumonia images alone."
)
NOT_COVERED_ELSEWHERE = (
    "The recipe (steps, sampling rate, clip, learning rate, regions) is a default that was tuned on none of "
    "these patients. The figures are plain statistics of the test patients, who are in no other split."
)


NOT_CALIBRATED = (
    "None: the softmax of the logits as the training left them; each hospital judges it on its own patients. Quarters, "
    "where given, follow from the training's noised mean feature"
)
FEDERATED_DATA = (
    "Patients of the consortium's hospitals who agreed to training, one study each; no image left its hospital"
)
FEDERATED_LICENCE = "Not published"
FEDERATED_SPLIT = (
    "All were training patients; each hospital evaluates the model on patients of its own before it is used"
)
FEDERATED_ACCOUNTANT = (
    "All sums of the run, as many as a hospital may have given at most: exactly where nothing is sampled (Dong, Roth, "
    "Su 2022), else by Renyi DP (Mironov et al. 2019); noise summed over hospitals as in Kairouz, Liu, Steinke 2021, "
    "and as a rounded Gaussian. The hospitals' patient sets count as disjoint, and about how many patients each has as "
    "public."
)
FEDERATED_NOT_COVERED = (
    "What the recipe (steps, clip, learning rate) was chosen by, if patients of the consortium had a part in that; a "
    "patient of two hospitals loses the epsilon of both."
)
FEDERATED_LIMITS = (
    "No test figures: the training saw sums alone. Each hospital must evaluate the model before it is used.",
    "The network sees the image squashed to a square, as its training images were; the field of view matters.",
    "The training knew three answers alone: other findings (effusion, heart failure, devices) were not labelled.",
    "Probabilities hold where the three classes are as frequent as in the training; elsewhere they must be shifted.",
    "The evidence map shows which positions moved the logits; it does not outline a lesion.",
)


def distributed_noise(honest: int) -> str:
    """Say where the noise of secure sums comes from."""
    return (
        "Discrete Gaussian, a share from each hospital, added before masking (Canonne, Kamath, Steinke 2020), from "
        f"AES-256-CTR keyed by the operating system; epsilon counts on {honest} hospitals that keep their share to "
        "themselves, epsilon_alone on none"
    )


def federated_course(sites: int, rounds: int, plan: str) -> str:
    """Say how a federated model was made."""
    return (
        f"Trained by {sites} hospitals in {rounds} rounds of secure aggregation under the plan with SHA-256 {plan}; no "
        "hospital's own update, loss or metric was known to anybody else."
    )


def test_drawn(share: float, seed: int) -> str:
    """Say that the test patients were drawn."""
    return f"Test is {share:.0%} of the patients of each class (seed {seed})."


def unspecific(specificity: float) -> str:
    """Warn of many false alarms."""
    return (
        f"Sensitive before specific: {1 - specificity:.0%} of the test split's healthy are called ill "
        "(specificity_at_half)."
    )


def how_split(test: str, share: float, seed: int) -> str:
    """Say how the splits were made; `test` says how the test patients were chosen."""
    return (
        f"By patient. {test} Validation is {share:.0%} of the training patients of each class "
        f"(seed {seed}). No patient is in two splits; a patient number counts separately in each class."
    )


def expert_reading(images: int, three_classes: float, pneumonia: float) -> str:
    """Say how far one radiologist agrees with the labels."""
    return (
        f"One radiologist, reading the {images} test images for the PriMIA study, agrees with the labels on "
        f"{three_classes:.1%} in three classes and on {pneumonia:.1%} in pneumonia yes or no."
    )
