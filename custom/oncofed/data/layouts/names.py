"""Parse names of files and folders: role, case, channel.

A name is read as words: ``BraTS-7-seg`` is of the case ``brats 7`` and a mask, ``label0007`` and ``img0007`` are of
the case ``7``. BIDS (1.10) ends names of masks in ``_mask``, ``_dseg`` or ``_probseg``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal
from unicodedata import normalize

from oncofed.data.images import stem
from oncofed.data.layouts.base import SPLIT_NAMES
from oncofed.data.manifest import Split

Role = Literal["image", "mask"]

IMAGE_FOLDERS = ("images", "imagesTr", "imgs", "image", "imagesVa", "imagesVal", "imagesTs")
LABEL_FOLDERS = ("labels", "labelsTr", "masks", "annotations", "label", "mask", "labelsVa", "labelsVal", "labelsTs")
# Words for masks in names of files and folders, across the field.
_MASK_WORDS = frozenset(
    [
        "seg",
        "segs",
        "segm",
        "segmentation",
        "segmentations",
        "dseg",
        "probseg",
        "mask",
        "masks",
        "msk",
        "label",
        "labels",
        "lbl",
        "lbls",
        "labelmap",
        "labelmaps",
        "gt",
        "gts",
        "groundtruth",
        "groundtruths",
        "truth",
        "annotation",
        "annotations",
        "anno",
        "annot",
        "manual",
        "contours",
        "structures",
        "gtv",
        "ctv",
        "ptv",
    ]
)
# Words next to such a word without further meaning: ground_truth, manual_seg, label-lesion_desc-T1_mask.
_BESIDE_MASK = frozenset(["ground", "final", "manual", "human", "expert", "consensus", "merged", "derivatives"])
_DRAWN = frozenset(["manual", "gt", "gts", "groundtruth", "groundtruths", "truth", "annotation", "annotations"])
# Names of mask folders that files may have, too.
_MASK_FOLDER_WORDS = frozenset(["rois", "organs", "delineations", "gtvs"])
_IMAGE_WORDS = frozenset(
    [
        "image",
        "images",
        "img",
        "imgs",
        "imaging",
        "volume",
        "volumes",
        "vol",
        "scan",
        "scans",
        "ct",
        "ctres",
        "mri",
        "cxr",
        "data",
        "orig",
        "original",
        "originals",
        "input",
        "inputs",
        "raw",
        "rawdata",
        "sourcedata",
        "preprocessed",
        "picture",
        "pictures",
        "photo",
        "photos",
    ]
)
# Sequences and tracers by which the files of one case differ.
CHANNEL_WORDS = frozenset(
    [
        "flair",
        "t1",
        "t1w",
        "t1c",
        "t1n",
        "t1ce",
        "t1gd",
        "t1post",
        "t1pre",
        "t2",
        "t2w",
        "t2f",
        "t2flair",
        "pd",
        "pdw",
        "adc",
        "dwi",
        "hbv",
        "trace",
        "swi",
        "pwi",
        "bold",
        "dce",
        "asl",
        "mra",
        "ct",
        "pt",
        "pet",
        "suv",
        "fdg",
        "cta",
        "ncct",
        "cbct",
    ]
)
_PLACES = frozenset(
    {*SPLIT_NAMES, *["all", "set", "batch", "anat", "func", "dwi", "perf", "micr", "public", "release"]}
)
_CASE = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]+|[a-z]+|\d+")
_SEPARATOR = re.compile(r"[\W_]+")
_ROLE_WORDS = _MASK_WORDS | _IMAGE_WORDS

Words = tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """A file's path, read as words.

    Attributes:
        path: inside the folder.
        quiet: words of folders that state no role although they contain such a word.
    """

    path: str
    quiet: frozenset[Words] = frozenset()

    @property
    def folder(self) -> str:
        """Path of its folder."""
        return self.path.rpartition("/")[0]

    @cached_property
    def folders(self) -> tuple[Words, ...]:
        """Words of each folder, from the outermost."""
        return tuple(words(folder) for folder in self.path.split("/")[:-1])

    @cached_property
    def bare(self) -> Words:
        """Words of the file's name."""
        return words(stem(Path(self.path)))

    @cached_property
    def role(self) -> Role | None:
        """Image or mask, by name, else by the innermost folder."""
        if self.own_role == "mask":
            return "mask"
        return self.role_of_folders or self.own_role

    @cached_property
    def own_role(self) -> Role | None:
        """Image or mask, by the file's name."""
        if says_mask(self.bare):
            return "mask"
        return "image" if set(self.bare) & _IMAGE_WORDS else None

    @property
    def role_of_folders(self) -> Role | None:
        """Image or mask, by a folder."""
        return self._telling[1] if self._telling else None

    @property
    def says_last(self) -> Role | None:
        """Image or mask, by the innermost folder."""
        last = self.telling_folder and self.telling_folder == without_numbers(self.folders[-1])
        return self.role_of_folders if last else None

    @property
    def telling_folder(self) -> Words:
        """Words of the folder that states a role, without numbers."""
        return self._telling[0] if self._telling else ()

    @property
    def folder_of_masks(self) -> str:
        """Name of the folder of masks; empty without one."""
        return self.path.split("/")[self._telling[2]] if self._telling and self._telling[1] == "mask" else ""

    @cached_property
    def _telling(self) -> tuple[Words, Role, int] | None:
        for at, folder in reversed(list(enumerate(self.folders))):
            kind = without_numbers(folder)
            mask = bool(set(folder) & (_MASK_WORDS | _MASK_FOLDER_WORDS))
            if kind not in self.quiet and mask != bool(set(folder) & (_IMAGE_WORDS - CHANNEL_WORDS)):
                return kind, "mask" if mask else "image", at
        return None

    @cached_property
    def place(self) -> Words:
        """Words of the folders that state no role."""
        drop = _ROLE_WORDS | _MASK_FOLDER_WORDS | _BESIDE_MASK
        return tuple(word for folder in self.folders for word in folder if word not in drop)

    @cached_property
    def exact(self) -> Words:
        """Words of the name without those of masks."""
        return without_mask_words(self.bare) if self.role == "mask" else self.bare

    @cached_property
    def key(self) -> Words:
        """Words of the case in the name, without roles."""
        return tuple(word for word in self.exact if word not in _IMAGE_WORDS)

    @cached_property
    def case(self) -> Words:
        """Words of the case, without channels and lists.

        For ``21_training`` the number.
        """
        found = tuple(word for word in self.key if word not in CHANNEL_WORDS)
        return tuple(word for word in found if word not in SPLIT_NAMES) or found

    @cached_property
    def scan(self) -> Words:
        """BIDS entities of a scan: ``sub-01_ses-1``."""
        pairs = dict(part.split("-", 1) for part in stem(Path(self.path)).split("_") if "-" in part)
        keys = ("sub", "ses", "acq", "rec", "run", "echo", "chunk") if "sub" in pairs else ()
        return tuple(f"{key}-{pairs[key]}" for key in keys if key in pairs)

    @property
    def is_drawn(self) -> bool:
        """Whether name or folder say that people drew it."""
        return bool(_DRAWN & {*self.bare, *(self.folders[-1] if self.folders else ())})

    @cached_property
    def channel(self) -> str | None:
        """Sequence or tracer, if exactly one is named."""
        found = [word for word in self.bare if word in CHANNEL_WORDS]
        return found[0] if len(found) == 1 else None

    @cached_property
    def split(self) -> Split | None:
        """List that a folder names: ``test``, ``imagesVa``."""
        found = {SPLIT_NAMES[word] for folder in self.folders for word in folder if word in SPLIT_NAMES}
        return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=1 << 16)
def words(text: str) -> Words:
    """Return the words of a name in lower case.

    imagesTr -> images, tr; label0001 -> label, 0001; T1w stays one.
    """
    found: list[str] = []
    for chunk in filter(None, _SEPARATOR.split(normalize("NFC", text))):
        lower = chunk.lower()
        parts = [part.lower() for part in _CASE.findall(chunk)]
        # A role word inside another word counts only if capitals or digits separate it.
        apart = lower not in _ROLE_WORDS | CHANNEL_WORDS and "".join(parts) == lower
        found += parts if apart and set(parts) & _ROLE_WORDS else [lower]
    return tuple(found)


def says_mask(name: Words) -> bool:
    """Return whether a name marks its file as a mask.

    By its last word that is no number, or its first.
    """
    last = next((word for word in reversed(name) if not word.isdigit()), "")
    first = name[0] if name else ""
    before = name[-2] if len(name) > 1 else ""
    # BIDS writes key-value, seg-vert, label-lesion; the Spinal Cord Toolbox seg-manual, lesion-manual.
    return last in _MASK_WORDS or first in _MASK_WORDS or (before in _MASK_WORDS and last in _BESIDE_MASK)


def has_mask_word(name: Words) -> Words:
    """Return the words that mark a file as a mask.

    All words from the first of them on, without numbers; empty if there is none.
    """
    at = next((place for place, word in enumerate(name) if word in _MASK_WORDS), len(name))
    return tuple(word for word in name[at:] if not word.isdigit())


def says_image(name: Words) -> bool:
    """Return whether a name marks its file as an image.

    By its last word that is no number.
    """
    return next((word for word in reversed(name) if not word.isdigit()), "") in _IMAGE_WORDS


def without_mask_words(name: Words) -> Words:
    """Return a mask's name without the words of masks."""
    return tuple(word for word in name if word not in _MASK_WORDS and word not in _BESIDE_MASK)


def without_numbers(name: Words) -> Words:
    """Return a name's words without numbers."""
    return tuple(word for word in name if not word.isdigit())


def without_zeros(name: Words) -> Words:
    """Return words whose numbers have no leading zeros."""
    return tuple(word.lstrip("0") or "0" if word.isdigit() else word for word in name)


def is_place(word: str) -> bool:
    """Return whether a word names a split or folder kind."""
    return word in _PLACES


# --- words of a name that do not identify the case

_WORD = "|".join(sorted(_MASK_WORDS | CHANNEL_WORDS, key=len, reverse=True))
_AFTER = re.compile(rf"(?:[_.-](?:{_WORD}))*(?:[_-]\d{{4}})?$", re.IGNORECASE)
_BEFORE = re.compile(rf"^(?:{'|'.join(sorted(_ROLE_WORDS, key=len, reverse=True))})(?:[_-]?(?=\d)|$)", re.IGNORECASE)


def kept_parts(name: str) -> tuple[str, str, str]:
    """Divide a name into prefix, case and suffix.

    Prefix and suffix say what the file is.

    ``segmentation-12`` is ``segmentation-``, ``12`` and nothing; ``P7_t1_seg`` nothing, ``P7`` and ``_t1_seg``.
    """
    before = found[0] if (found := _BEFORE.match(name)) else ""
    rest = name[len(before) :]
    found = _AFTER.search(rest)
    after = found[0] if found else ""
    if after == rest and not before:
        return "", name, ""
    return before, rest[: len(rest) - len(after)], after
