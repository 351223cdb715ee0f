"""The cases of a site's folder in Decathlon layout (``dataset.json``, ``imagesTr``, ``labelsTr``), and their checks.

Layout: Medical Segmentation Decathlon (Antonelli et al., Nature Communications 2022), as MONAI's
``load_decathlon_datalist`` reads it. The key ``patient`` of an entry, where there is one, keeps a patient's images on
one side of the split; otherwise each case is a patient.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from oncofed.data.spec import SplitSpec
from oncofed.errors import DataError


@dataclass(frozen=True)
class Case:
    """One image with its reference label, both files on this site's disk."""

    name: str
    patient: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Cases:
    """A site's cases by purpose. No patient is in two of them."""

    train: tuple[Case, ...]
    validation: tuple[Case, ...]
    test: tuple[Case, ...]

    def __iter__(self) -> Iterator[Case]:
        return iter((*self.train, *self.validation, *self.test))

    def without(self, names: set[str]) -> Cases:
        """Return the cases less those named."""
        return Cases(
            *(tuple(c for c in part if c.name not in names) for part in (self.train, self.validation, self.test))
        )

    def require_training(self, where: str) -> Cases:
        """Return the cases, or raise where a model cannot be trained and tested on them."""
        for purpose, part in (("training", self.train), ("test", self.test)):
            if not part:
                raise DataError(
                    f"{where}: no usable {purpose} case (found {len(self.train)} training, {len(self.validation)} "
                    f"validation, {len(self.test)} test; expected at least 1 training and 1 test). "
                    "Add cases to dataset.json or leave the site out."
                )
        return self


@dataclass(frozen=True)
class Problem:
    """Why one case cannot be used: what was found, what was expected."""

    case: str
    what: str

    def __str__(self) -> str:
        return f"{self.case}: {self.what}"


def read_cases(folder: Path, split: SplitSpec, seed: int) -> Cases:
    """Read ``folder/dataset.json`` and deal its patients to training, validation and test.

    The lists ``validation`` and ``test`` of the file are used where they hold labelled cases; what they lack is dealt
    from ``training`` by a hash of patient and seed, so that adding a patient moves nobody else.

    Args:
        folder: a folder in Decathlon layout.
        split: shares to deal where the file does not say.
        seed: of the deal.

    Raises:
        DataError: the folder or its ``dataset.json`` cannot be used.
    """
    manifest = read_manifest(folder)
    lists = {key: _entries(folder, manifest, key) for key in ("training", "validation", "test")}
    train = lists["training"]
    parts: dict[str, list[Case]] = {}
    for purpose, share in (("test", split.test), ("validation", split.validation)):
        if lists[purpose]:
            parts[purpose] = lists[purpose]
        else:
            # A share is of all patients, so the second deal takes it from what the first one left.
            taken = len({c.patient for c in lists["training"]}) - len({c.patient for c in train})
            parts[purpose], train = _deal(train, share, seed, purpose, taken)
    cases = Cases(tuple(train), tuple(parts["validation"]), tuple(parts["test"]))
    _refuse_shared_patients(folder, cases)
    return cases


def check_cases(
    cases: Iterable[Case],
    classes: Sequence[int],
    workers: int = 4,
    progress: Callable[[], None] | None = None,
) -> list[Problem]:
    """Read every file of every case and return what cannot be used.

    Args:
        cases: the cases to read.
        classes: label values that the job learns; 0 is background.
        workers: files read at the same time.
        progress: called after each case.
    """

    def check(case: Case) -> Problem | None:
        problem = check_case(case, classes)
        if progress:
            progress()
        return problem

    with ThreadPoolExecutor(workers) as pool:
        return [problem for problem in pool.map(check, cases) if problem]


def check_case(case: Case, classes: Sequence[int]) -> Problem | None:
    """Return why ``case`` cannot be used, or None."""
    arrays = {}
    affines = {}
    for kind, path in (("image", case.image), ("label", case.label)):
        if not path.is_file():
            return Problem(case.name, f"its {kind} file {path.parent.name}/{path.name} is missing")
        try:
            nifti = nib.load(path)
            arrays[kind] = np.asanyarray(nifti.dataobj)
            affines[kind] = nifti.affine
        except Exception as error:  # noqa: BLE001 - nibabel, gzip and zlib raise many types for a broken file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reason = reason.replace(str(path), path.name)
            return Problem(
                case.name, f"its {kind} file {path.parent.name}/{path.name} cannot be read as NIfTI ({reason})"
            )
    return _check_arrays(case.name, arrays["image"], arrays["label"], affines, classes)


def _check_arrays(
    name: str, image: np.ndarray, label: np.ndarray, affines: dict[str, np.ndarray], classes: Sequence[int]
) -> Problem | None:
    if image.ndim != 3:
        return Problem(name, f"its image has {image.ndim} axes {image.shape}, expected a 3D volume")
    if image.shape != label.shape:
        return Problem(name, f"its label has shape {label.shape}, expected the image's {image.shape}")
    if not np.allclose(affines["image"], affines["label"], atol=1e-2):
        return Problem(name, "its label lies elsewhere in space than its image (their affines differ)")
    if np.issubdtype(image.dtype, np.complexfloating) or image.dtype.fields:
        return Problem(name, f"its image is stored as {image.dtype}, expected one number a voxel")
    if not np.isfinite(image).all():
        return Problem(name, "its image holds values that are not finite")
    if image.min() == image.max():
        return Problem(name, f"its image is constant (every voxel is {image.flat[0]})")
    found = np.unique(label)
    allowed = (0, *classes)
    extra = [f"{value:g}" for value in found if value not in allowed]
    if extra:
        return Problem(name, f"its label holds the values {', '.join(extra[:5])}, expected only {list(allowed)}")
    if not (found != 0).any():
        return Problem(name, "its label is empty: no voxel of any class")
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the contents of ``folder/dataset.json``, which holds a list "training"."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Expected a folder with dataset.json, imagesTr and labelsTr.")
    path = folder / "dataset.json"
    if not path.is_file():
        raise DataError(f"{folder}: no dataset.json. Expected the Decathlon layout: dataset.json, imagesTr, labelsTr.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not JSON ({error}). Repair the file or write it again.") from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("training"), list):
        raise DataError(f'{path}: no list "training". Expected {{"training": [{{"image": ..., "label": ...}}, ...]}}.')
    return manifest


def _entries(folder: Path, manifest: dict[str, Any], key: str) -> list[Case]:
    entries = manifest.get(key) or []
    if key == "test":
        # The Decathlon's own test images come without labels, as bare file names: of no use here.
        entries = [e for e in entries if isinstance(e, dict) and "label" in e]
    cases = []
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in ("image", "label")):
            raise DataError(
                f'{folder / "dataset.json"}: entry {number} of "{key}" is {json.dumps(entry)[:80]}, '
                'expected {"image": "imagesTr/NAME.nii.gz", "label": "labelsTr/NAME.nii.gz"}.'
            )
        image, label = (_inside(folder, entry[k]) for k in ("image", "label"))
        name = image.name.removesuffix(".gz").removesuffix(".nii")
        cases.append(Case(name, str(entry.get("patient", name)), image, label))
    return cases


def _inside(folder: Path, relative: str) -> Path:
    # Lexical on purpose: a site may link files into its folder, a manifest may not point out of it.
    path = Path(os.path.normpath(folder / relative))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise DataError(f"{folder / 'dataset.json'}: {relative!r} lies outside the folder. Expected a path inside it.")
    return path


def _deal(cases: list[Case], share: float, seed: int, purpose: str, taken: int) -> tuple[list[Case], list[Case]]:
    patients = sorted(
        {c.patient for c in cases}, key=lambda p: hashlib.sha256(f"{seed}:{purpose}:{p}".encode()).digest()
    )
    everyone = len(patients) + taken
    count = round(everyone * share) if len(patients) > 2 else 0
    count = min(max(count, 1 if share > 0 and len(patients) > 2 else 0), max(len(patients) - 1, 0))
    chosen = set(patients[:count])
    return [c for c in cases if c.patient in chosen], [c for c in cases if c.patient not in chosen]


def _refuse_shared_patients(folder: Path, cases: Cases) -> None:
    parts = {
        purpose: {c.patient for c in part}
        for purpose, part in (("training", cases.train), ("validation", cases.validation), ("test", cases.test))
    }
    for a, b in (("training", "validation"), ("training", "test"), ("validation", "test")):
        both = parts[a] & parts[b]
        if both:
            raise DataError(
                f"{folder / 'dataset.json'}: patient {sorted(both)[0]} is in both {a} and {b}. "
                "Expected each patient on one side of the split only."
            )


def pool_cases(by_site: dict[str, Cases]) -> Cases:
    """Return all sites' cases in one place; names and patients carry their site's name, so that none collide."""

    def join(purpose: str) -> tuple[Case, ...]:
        return tuple(
            replace(case, name=f"{site}/{case.name}", patient=f"{site}/{case.patient}")
            for site, cases in sorted(by_site.items())
            for case in getattr(cases, purpose)
        )

    return Cases(join("train"), join("validation"), join("test"))
