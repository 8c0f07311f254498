"""Words and codes that `selection` knows (PS3.3 C.7.1.1, C.8.11.5; PS3.16 CID 4010, CID 4031, CID 7454, Annex L).

SNOMED codes stand in both spellings, SCT and the retired SRT, since modalities in service write either.
"""

from __future__ import annotations

from collections.abc import Set


def spoken(value: str, defined: Set[str]) -> str:
    """Repeat a code that the standard defines, else only say whether there is one; free text may hold anything."""
    if not value:
        return "absent"
    return value if value in defined else "another one"


def _terms(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Codes that may be repeated in a message: defined terms say nothing about a patient.
MODALITIES = _terms("""
    AR AU BI BMD CR CT DG DOC DX ECG EPS ES GM HD IO IVOCT IVUS KO LS MG MR NM OAM OCT OP OPT OPV OT PR PT PX
    REG RF RG RTDOSE RTIMAGE RTPLAN RTSTRUCT SC SEG SM SR TG US VA XA XC
""")
BODY_PARTS = _terms("""
    ABDOMEN ANKLE AORTA ARM BREAST CLAVICLE COCCYX CSPINE ELBOW EXTREMITY EYE FEMUR FOOT HAND HEAD HEART HIP JAW
    KNEE LEG LSPINE NECK PELVIS SHOULDER SKULL SPINE SSPINE TSPINE UTERUS WHOLEBODY WRIST
""")
VIEW_POSITIONS = _terms("AP PA LL RL RLD LLD RLO LLO LATERAL LAO RAO LPO RPO")

HUMAN_WORDS = frozenset({"HUMAN", "HOMO SAPIENS"})
HUMAN_CODES = _terms("337915000 L-85003 30996001 L-85B00")
# Present only where the patient is an animal (PS3.3 C.7.1.1, Type 2C and 3).
ANIMAL_ATTRIBUTES = (
    *("PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence", "PatientSexNeutered"),
    *("StrainDescription", "StrainStockSequence"),
)
ANIMAL_WORDS = _terms("""
    ANIMAL AVIAN BOVINE CANINE CANINO CAPRINE CATS CHIEN CHIENS DOG DOGS EQUINE EQUINO FELINE FELINO FERRET GATO
    HUND HUNDE KATZE KITTEN MURINE OVINE PERRO PFERD PORCINE PUPPY RABBIT REPTILE RODENT VETERINARIA
    VETERINARIAN VETERINARY
""")

CHEST_WORDS = _terms("CHEST CXR LUNG LUNGE LUNGEN LUNGS PULMO THORAX TORACE TORAX")
CHEST_CODES = _terms("816094009 51185008 T-D3000 43799004 T-D3200 39607008 T-28000")
# Without "arm", as a C-arm is a device, and without "face", as a French "thorax face" is a frontal chest.
OTHER_PARTS = _terms("""
    ABDOME ABDOMEN ABDOMINAL ANKLE ANKLES BABYGRAM BASSIN BECKEN BREAST CADERA CALCANEUS CERVICAL CHEVILLE
    CLAVICLE COCCYX COLUMNA CRANE CRANEO CRANIUM CSPINE DENTAL ELBOW ELBOWS EPAULE FACIAL FEET FEMUR FIBULA
    FINGER FINGERS FOOT FOREARM GENOU HANCHE HAND HANDS HEAD HEEL HIP HIPS HOMBRO HUFTE HUMERUS JAW KIDNEY KNEE
    KNEES KNIE KUB LEG LEGS LSPINE LUMBAR MAMMO MAMMOGRAM MAMMOGRAPHY MANDIBLE MANO MAXILLA NASAL NECK ORBIT
    ORBITS PATELLA PELVIC PELVIS PIED RADIUS RIB RIBS RODILLA SACRUM SCAPULA SCHADEL SCHULTER SCOLIOSIS SHOULDER
    SHOULDERS SINUS SINUSES SKULL SPINE STERNUM TEETH TIBIA TOE TOES TOOTH TSPINE ULNA WIRBELSAULE WRIST WRISTS
    ZAHN ZAHNE
""")

# What a view code leaves possible; a code that is absent here is no frontal view.
VIEW_CODES: dict[str, Set[str]] = {
    "272479007": {"PA"},
    "R-10214": {"PA"},
    "R-40888": {"PA"},
    "399348003": {"AP"},
    "R-10206": {"AP"},
    "399033003": {"PA", "AP"},  # frontal
    "R-10202": {"PA", "AP"},
}
# Words, and the views that they leave possible.
VIEW_WORDS: tuple[tuple[Set[str], Set[str]], ...] = (
    (_terms("PA POSTEROANTERIOR"), {"PA"}),
    (_terms("AP ANTEROPOSTERIOR"), {"AP"}),
    (_terms("FRONTAL FACE"), {"PA", "AP"}),
    (_terms("LAT LATERAL LATERALE LL RL SEITLICH PERFIL PROFIL DECUB DECUBITUS LLD RLD"), {"lateral"}),
    (_terms("OBL OBLIQUE LAO RAO LPO RPO LORDOTIC APICAL"), {"oblique"}),
)
