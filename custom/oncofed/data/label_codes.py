"""Codes of labels: what a dataset's label means, whatever it is called.

Segmentations in DICOM code each segment (PS3.3, C.8.20.4), and a job may code its classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from oncofed.data.codes import is_same
from oncofed.data.label_names import name_key
from oncofed.data.manifest import Manifest


def codes_of_names(labels: Iterable[tuple[Mapping[str, str], Mapping[str, str]]]) -> dict[str, str]:
    """Return name -> code, of names that every file codes alike.

    Args:
        labels: number -> name and number -> code of each file.
    """
    found: dict[str, set[str]] = defaultdict(set)
    for names, codes in labels:
        for number, name in names.items():
            found[name].add(codes.get(number, ""))
    return {name: next(iter(codes)) for name, codes in found.items() if len(codes) == 1 and codes != {""}}


def by_codes(manifest: Manifest, classes: Mapping[int, str], codes: Mapping[int, str]) -> Manifest:
    """Return a dataset whose names of labels lead to the job's classes of the same codes.

    A code counts where one label of the dataset and one class of the job have it: programs that code nothing give all
    segments one code. What people wrote into ``label_map`` goes before.

    Args:
        manifest: the dataset.
        classes: of the job, label value -> name.
        codes: of the job, label value -> code; of classes that have one.
    """
    called = set(map(name_key, classes.values()))
    found = {name: target for name, _, target in _led(manifest, classes, codes) if name_key(name) not in called}
    return manifest.model_copy(update={"label_map": {**found, **manifest.label_map}}) if found else manifest


def contradicting(manifest: Manifest, classes: Mapping[int, str], codes: Mapping[int, str]) -> list[str]:
    """Return why names and codes of a dataset lead to different classes; empty where they do not."""
    by_name = {name_key(name): name for name in classes.values()}
    own = set(map(name_key, manifest.labels.values()))
    written = set(map(name_key, manifest.label_map))
    of_class = {name_key(name): name for name in manifest.labels.values() if name_key(name) not in written}
    of_class |= {
        name_key(target): name for name, target in manifest.label_map.items() if target and name_key(name) in own
    }
    found = []
    for name, code, target in _led(manifest, classes, codes):
        called, other = by_name.get(name_key(name)), of_class.get(name_key(target), name)
        if called and name_key(called) != name_key(target):
            why = (
                f"its label {name!r} is called as the job's {called}, and its code {code} is that of the job's {target}"
            )
        elif name_key(other) != name_key(name):
            why = f"its label {name!r} has the code {code} of the job's {target}, as its label {other!r} has the name"
        else:
            continue
        found.append(f'{why}. Say in dataset.json which it is: "label_map": {{"{name}": "NAME"}}')
    return found


def _led(manifest: Manifest, classes: Mapping[int, str], codes: Mapping[int, str]) -> Iterator[tuple[str, str, str]]:
    """Yield name, code and the job's class of each label that a code leads to a class."""
    written = set(map(name_key, manifest.label_map))
    own = [(manifest.labels[value], code) for value, code in manifest.codes.items() if value in manifest.labels]
    jobs = [(classes[value], code) for value, code in codes.items() if value in classes]
    for name, code in own:
        here = [other for other, of in own if is_same(of, code)]
        there = [other for other, of in jobs if is_same(of, code)]
        if len(here) == len(there) == 1 and name_key(name) not in written:
            yield name, code, there[0]
