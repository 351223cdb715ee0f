"""Find mixtures in a dataset: patients, units, raw and processed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from oncofed.data.dicom.volumes import FOLDER
from oncofed.data.manifest import Entry, Manifest

UNITS = "units"  # a note on PET: PS3.3, section C.8.9.1.1.3
RAW = "raw: FOR PROCESSING, not for presentation"
_FEWEST_STUDIES = 3
_UNLIKELY_SHARE = 0.5


def mixtures(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield (kind, description) of each mixture."""
    yield from _one_patient(manifest)
    yield from _units(manifest)
    yield from _raw(manifest)


def _one_patient(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the patient with most of several studies."""
    by_patient: dict[str, list[Entry]] = defaultdict(list)
    for entry in manifest.entries:
        if entry.patient:
            by_patient[entry.patient].append(entry)
    total = len(manifest.entries)
    for entries in by_patient.values():
        studies = len({entry.study for entry in entries if entry.study})
        if studies >= _FEWEST_STUDIES and len(entries) > _UNLIKELY_SHARE * total:
            many = "all" if len(entries) == total else f"{len(entries)} of"
            what = (
                f"{many} {total} cases are of one patient ({studies} studies under one PatientID), so that all are on "
                "one side of the deal. Where an anonymiser gave several patients one ID, register the folder again "
                "with --patient-from study (each study is a patient), series or folder"
            )
            yield "one patient", what
        by_folder = [entry for entry in entries if any(note.endswith(FOLDER) for note in entry.notes)]
        if len(by_folder) > 1:
            what = (
                f"{len(by_folder)} cases of one patient have one SeriesInstanceUID, and only the folders of "
                "their files tell them apart. Where an anonymiser gave several patients one set of UIDs, register the "
                "folder again with --patient-from folder (each folder at the top is a patient)"
            )
            yield "one patient", what


def _units(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the units of PET images, if several."""
    found = [note for entry in manifest.entries for note in entry.notes if note.startswith(f"{UNITS} ")]
    counts = Counter(note.removeprefix(f"{UNITS} ") for note in found)
    if len(counts) > 1:
        listed = ", ".join(f"{count} in {units}" for units, count in sorted(counts.items()))
        what = f"PET images have several units ({listed}), so that their values cannot be compared"
        yield "mixed units", what


def _raw(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield the number of raw projections among processed ones."""
    by_modality: dict[str, list[bool]] = defaultdict(list)
    for entry in manifest.entries:
        if entry.modality and len(entry.shape or []) == 2:
            by_modality[entry.modality].append(RAW in entry.notes)
    for modality, raw in by_modality.items():
        if any(raw) and not all(raw):
            what = (
                f"{sum(raw)} {modality} images are raw (FOR PROCESSING), {len(raw) - sum(raw)} are processed: one "
                "exposure may be there twice, with values that mean something else. Leave one kind out"
            )
            yield "raw images", what
