"""Coded terms of segments: the job's, SNOMED CT, or private.

A private code is used only if neither the job nor the table below has one.

Values and meanings are those of DICOM PS3.16 (CID 7150 to 7160, 7151 above all), which licenses them for DICOM objects.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from oncofed.tasks.codes import ClassCode, CodedTerm

PRIVATE_SCHEME = "99ONCOFED"
_LONGEST_VALUE, _LONGEST_MEANING = 16, 64


class Term(NamedTuple):
    """A coded term."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class SegmentCode:
    """Coded terms of a segment.

    Attributes:
        kind: property type.
        category: property category.
        modifiers: of the type, such as a side.
        region: anatomic region, if known.
    """

    kind: Term
    category: Term
    modifiers: tuple[Term, ...] = ()
    region: Term | None = None

    @property
    def is_private(self) -> bool:
        """Whether the code is ours alone."""
        return self.kind.scheme == PRIVATE_SCHEME

    @property
    def text(self) -> str:
        """Readable text of the terms."""
        parts = [*self.modifiers, *([self.region] if self.region else [])]
        more = f" ({', '.join(part.meaning for part in parts)})" if parts else ""
        return f"{self.kind.scheme} {self.kind.value} {self.kind.meaning}{more}"


_STRUCTURE = Term("91723000", "SCT", "Anatomical Structure")
_TISSUE = Term("85756007", "SCT", "Tissue")
_ABNORMAL = Term("49755003", "SCT", "Morphologically Abnormal Structure")
_FLUID = Term("91720002", "SCT", "Body Substance")
_REGION = Term("309825002", "SCT", "Spatial and Relational Concept")
_LEFT, _RIGHT = Term("7771000", "SCT", "Left"), Term("24028007", "SCT", "Right")
_ANTERIOR, _POSTERIOR = Term("255549009", "SCT", "Anterior"), Term("255551008", "SCT", "Posterior")
_SIDES = {"left": _LEFT, "right": _RIGHT, "anterior": _ANTERIOR, "posterior": _POSTERIOR}

# Names by category: "value meaning: other names". Names are compared by `_words`.
_KNOWN = {
    _STRUCTURE: """
        78961009 Spleen
        10200004 Liver
        64033007 Kidney
        15776009 Pancreas
        28231008 Gallbladder: gall bladder
        23451007 Adrenal gland: adrenal, suprarenal gland
        69695003 Stomach
        38848004 Duodenum
        30315005 Small intestine: small bowel
        14742008 Large intestine: large bowel
        71854001 Colon
        34402009 Rectum
        32849002 Esophagus
        89837001 Bladder: urinary bladder
        41216001 Prostate: prostate gland, whole gland
        279706003 Peripheral zone of the prostate: peripheral zone
        64739004 Seminal Vesicle
        35039007 Uterus
        15497006 Ovary
        40689003 Testis
        39607008 Lung
        45653009 Upper lobe of lung
        72481006 Middle lobe of right lung: lung middle lobe right, lung middle lobe
        90572001 Lower lobe of lung
        44567001 Trachea
        955009 Bronchus
        89187006 Airway structure: airway
        80891009 Heart
        87878005 Left ventricle: heart ventricle left, left ventricular cavity, left ventricle blood pool
        53085002 Right ventricle: heart ventricle right, right ventricular cavity
        82471001 Left atrium: heart atrium left
        73829009 Right atrium: heart atrium right
        49848007 Left Ventricle Myocardium: heart myocardium, myocardium
        76848001 Pericardium
        15825003 Aorta
        81040000 Pulmonary artery
        122972007 Pulmonary vein
        32764006 Portal vein
        8993003 Hepatic vein
        64131007 Inferior vena cava
        48345005 Superior vena cava
        69105007 Carotid Artery
        10293006 Iliac artery
        12738006 Brain
        5366008 Hippocampus
        4958002 Amygdala
        42695009 Thalamus
        11000004 Caudate Nucleus: caudate
        89278009 Putamen
        14738005 Globus Pallidus: pallidum
        427667007 Nucleus Accumbens: accumbens
        119238007 Brain Stem: brainstem
        113305005 Cerebellum
        88442005 Corpus callosum
        83251001 Frontal lobe
        78277001 Temporal lobe
        16630005 Parietal lobe
        31065004 Occipital lobe
        35764002 Brain ventricle: ventricles of brain
        66720007 Lateral Ventricle
        49841001 Third ventricle
        35918002 Fourth Ventricle
        2748008 Spinal cord
        18234004 optic nerve
        244453006 Optic chiasm
        81016008 Optic nerve head: optic disc
        56329008 Pituitary: pituitary gland
        81745001 Eye
        79652003 Eyeball: globe
        78076003 Lens: eye lens
        5665001 Retina
        45289007 Parotid gland: parotid
        54019009 Submandibular gland: submandibular
        69748006 Thyroid: thyroid gland
        4596009 Larynx
        54066008 Pharynx
        21974007 Tongue
        91609006 Mandible
        38199008 Tooth
        89546000 Skull
        51282000 Vertebra
        54735007 Sacrum
        113197003 Rib
        56873002 Sternum
        51299004 Clavicle
        79601000 Scapula
        85050009 Humerus
        71341001 Femur
        2812003 Femoral head: femur head
        12611008 Tibia
        64234005 Patella
        76752008 Breast
    """,
    _TISSUE: """
        389081007 Gray Matter: gm
        389080008 White Matter: wm
        68523003 Cerebral White Matter
        55603005 Fat: adipose tissue, adipose
        91727004 Muscle
        309312004 Cartilage
        74135004 Meniscus
        59441001 Lymph Node
        59820001 Blood Vessel: vessel
        39937001 Skin
    """,
    _FLUID: """
        65216001 Cerebrospinal Fluid: csf
    """,
    _ABNORMAL: """
        108369006 Neoplasm: tumor, whole tumor, tumor core, cancer
        372087000 Neoplasm, Primary: primary tumor
        14799000 Neoplasm, Secondary
        128462008 Metastasis: metastases
        52988006 Lesion
        27925004 Nodule
        367643001 Cyst
        6574001 Necrosis: necrotic core, necrotic tumor core, necrotic
        79654002 Edema: peritumoral edema
        50960005 Hemorrhage: bleeding
        35566002 Hematoma
        60046008 Pleural effusion
        36118008 Pneumothorax
    """,
}
_ENHANCING = {
    "enhancing tumor": Term("C113842", "NCIt", "Enhancing Lesion"),
    "enhancing lesion": Term("C113842", "NCIt", "Enhancing Lesion"),
    "non enhancing tumor": Term("C81175", "NCIt", "Non-Enhancing Lesion"),
    "non enhancing lesion": Term("C81175", "NCIt", "Non-Enhancing Lesion"),
}
# Findings within an organ: "liver tumour" is a neoplasm with region liver.
_LIE_IN = {"tumor", "neoplasm", "lesion", "cyst", "nodule", "metastasis", "cancer", "edema", "hemorrhage"}
_SPELLINGS = {
    "tumour": "tumor",
    "oedema": "edema",
    "haemorrhage": "hemorrhage",
    "haematoma": "hematoma",
    "oesophagus": "esophagus",
    "grey": "gray",
    "metastases": "metastasis",
    "ovaries": "ovary",
    "vertebrae": "vertebra",
    "nuclei": "nucleus",
    "hippocampi": "hippocampus",
}
_FILLERS = {"of", "the", "and", "structure"}
# Words whose final s is no plural.
_SINGULAR = re.compile(r"(?:us|ss|is|ens|pancreas)$")

_Key = frozenset[str]


def segment_code(name: str, given: ClassCode | None = None) -> SegmentCode:
    """Return the coded terms of a class.

    Args:
        name: of the class.
        given: the job's code; None: look the name up, else use a private code.
    """
    known = _by_name(_words(name))
    if given is None:
        return known or SegmentCode(_private(name), _REGION)
    kind = _term(given, name)
    modifiers = (_term(given.modifier, "modifier"),) if given.modifier else ()
    region = _term(given.region, "region") if given.region else None
    if given.category is not None:
        category = _term(given.category, "category")
    else:
        category = _categories().get(kind[:2], known.category if known else _REGION)
    return SegmentCode(kind, category, modifiers, region)


def segment_codes(classes: Mapping[int, str], given: Mapping[int, ClassCode]) -> dict[int, SegmentCode]:
    """Return the coded terms by label value."""
    return {value: segment_code(name, given.get(value)) for value, name in classes.items()}


def known_codes() -> Iterator[SegmentCode]:
    """Yield all terms known by name."""
    yield from _table().values()


def standard_meaning(scheme: str, value: str) -> str:
    """Return a code's meaning in DICOM's tables; empty if unknown."""
    return _meanings(scheme).get(value, "")


def _term(term: CodedTerm, name: str) -> Term:
    meaning = term.meaning or standard_meaning(term.scheme, term.value) or name
    return Term(term.value, term.scheme, clean(meaning))


def clean(text: str) -> str:
    """Return text that fits a long string (LO, PS3.5)."""
    plain = "".join(c if c.isprintable() and c != "\\" else " " for c in text).strip()
    # Readers count bytes or characters.
    return plain.encode()[:_LONGEST_MEANING].decode(errors="ignore").strip()


def _private(name: str) -> Term:
    """Return a private code that depends on the name alone."""
    letters = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_")
    plain = name.isascii() and len(letters) <= _LONGEST_VALUE
    start = f"{letters[:7]}_" if letters else ""
    value = letters if plain and letters else start + hashlib.sha256(name.encode()).hexdigest()[:8].upper()
    return Term(value, PRIVATE_SCHEME, clean(name) or value)


def _by_name(words: _Key) -> SegmentCode | None:
    exact = _table().get(words)
    if exact is not None:
        return exact
    sides = tuple(_SIDES[word] for word in _SIDES if word in words)
    plain = words.difference(_SIDES)
    found = _table().get(plain)
    if found is None:
        found = _in_organ(plain)
    if found is None or found.modifiers:
        return None
    return SegmentCode(found.kind, found.category, sides, found.region)


def _in_organ(words: _Key) -> SegmentCode | None:
    inside = words & _LIE_IN
    if not inside:
        return None
    what, organ = _table().get(inside), _table().get(words - inside)
    if what is None or organ is None or organ.category is _ABNORMAL:
        return None
    return SegmentCode(what.kind, what.category, (), organ.kind)


def _words(name: str) -> _Key:
    words = re.findall(r"[^\W_]+", name.casefold())
    words = [_SPELLINGS.get(word, word) for word in words if word not in _FILLERS]
    words = [word if len(word) < 4 or _SINGULAR.search(word) else word.removesuffix("s") for word in words]
    return frozenset(words)


def _entries() -> Iterator[tuple[_Key, SegmentCode]]:
    for category, lines in _KNOWN.items():
        for line in lines.strip().splitlines():
            entry, _, others = line.strip().partition(":")
            value, meaning = entry.split(" ", 1)
            code = SegmentCode(Term(value, "SCT", meaning), category)
            for name in (meaning, *(other for other in others.split(",") if other.strip())):
                yield _words(name), code
    for name, term in _ENHANCING.items():
        yield _words(name), SegmentCode(term, _ABNORMAL)


@cache
def _table() -> dict[_Key, SegmentCode]:
    return dict(_entries())


@cache
def _categories() -> dict[tuple[str, str], Term]:
    """Map (value, scheme) of a property type to its category."""
    return {code.kind[:2]: code.category for code in known_codes()}


@cache
def _meanings(scheme: str) -> dict[str, str]:
    """Map a scheme's codes to their meanings; empty if unknown."""
    from pydicom.sr.codedict import Collection  # noqa: PLC0415 - large

    found: dict[str, str] = {}
    with contextlib.suppress(KeyError):
        for code in Collection(scheme).concepts.values():
            # SNOMED's fully specified names end in what kind of term it is.
            if code.value not in found or found[code.value].endswith(")"):
                found[code.value] = code.meaning
    return found
