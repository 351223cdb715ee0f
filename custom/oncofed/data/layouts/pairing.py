"""Pair masks with images by their names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from oncofed.data.grouping import counted
from oncofed.data.layouts.base import NO_IMAGE, FolderLayout, Item, Part, name_of, patient_of, unique
from oncofed.data.layouts.kinds import LayoutKind
from oncofed.data.layouts.names import IMAGE_FOLDERS, Named, Words, is_place, without_mask_words, without_zeros
from oncofed.data.manifest import Quarantined

_MOST_TOLD = 4
_NOT_DRAWN = "mask of an image that has another one, which is called the one drawn by hand or the truth"
_SEVERAL = "mask that may be of several images: list both in a table (image, label)"
# Largest number of images whose headers are read to find the one on a mask's grid.
_MOST_ASKED = 24
_ANOTHER = "mask of an image that has another one, whose name is more like its own"


@dataclass
class Candidate:
    """A case: its channels and possible masks.

    Attributes:
        images: by channel.
        numbered: the last word of their names counts the channels (nnU-Net's ``_0000``).
        masks: those whose names fit, with their words beyond the case's, which say what they show.
        loose: masks whose names fit less well.
        shared: masks that fit another case as well, so are not used.
    """

    images: list[Named]
    numbered: bool = False
    masks: list[tuple[Named, Words]] = field(default_factory=list)
    loose: list[tuple[Named, Words]] = field(default_factory=list)
    shared: list[Named] = field(default_factory=list)

    @property
    def first(self) -> Named:
        """Its first channel."""
        return self.images[0]

    @property
    def fitting(self) -> list[tuple[Named, Words]]:
        """Its masks; numbered ones may be pieces of one."""
        if not self.masks:
            return self.loose
        found = [*self.masks, *(pair for pair in self.loose if not _class(pair[1]))]
        if any(_class(extra) for _, extra in found):
            return found
        # Of several without a class, those that people drew: next to manual/7, mask/7 may be of the field of view.
        return [pair for pair in found if pair[0].is_drawn] or found

    @property
    def exact(self) -> Words:
        """Words of its name; with several channels, the shared ones."""
        if self.numbered:
            return self.first.exact[:-1]
        return self.first.exact if len(self.images) == 1 else self.first.case

    @property
    def key(self) -> Words:
        """Words of its name that identify the case."""
        if self.numbered:
            return self.first.key[:-1]
        return self.first.key if len(self.images) == 1 else self.first.case

    @property
    def case(self) -> Words:
        """Words that identify the case, without channels."""
        return self.first.case[:-1] if self.numbered else self.first.case


Fits = Callable[[Candidate, Named], bool]


def pair(cases: Sequence[Candidate], masks: Iterable[Named], on_one_grid: Fits) -> list[tuple[Named, str]]:
    """Assign masks to cases; return the others with reasons.

    Args:
        cases: the images.
        masks: files that are masks.
        on_one_grid: whether a mask lies on a case's grid; called only if several names fit.
    """
    lost = []
    masks = list(masks)
    again = Counter(mask.key for mask in {(mask.folder, mask.key): mask for mask in masks}.values())
    finders = [_Finder(cases, key) for key in _KEYS]
    nearby = _Nearby(cases)
    for mask in masks:
        found: tuple[list[Candidate], Words, bool] | None = None
        for finder in finders:
            found = finder.find(mask)
            if found:
                break
        found = found or nearby.find(mask, again[mask.key] > 1)
        if found is None:
            lost.append((mask, NO_IMAGE))
            continue
        several, extra, exact = found
        several = _on_its_grid(several, nearby.like(several, mask), mask, on_one_grid)
        if len(several) > 1:
            lost.append((mask, _SEVERAL))
            for case in several:
                case.shared.append(mask)
        elif exact:
            several[0].masks.append((mask, extra))
        else:
            several[0].loose.append((mask, extra))
    return lost


def _on_its_grid(found: list[Candidate], like: list[Candidate], mask: Named, on_one_grid: Fits) -> list[Candidate]:
    """Return the images on a mask's grid.

    Among those whose names fit, else among others of the case; if none, those whose names fit.

    Args:
        found: images whose names fit.
        like: images of the same case, which differ by the sequence.
        mask: to find the image of.
        on_one_grid: see ``pair``.
    """
    if len(found) == 1 and len(like) <= 1:
        return found
    for those in (found, like):
        if len(those) <= _MOST_ASKED and (fitting := [case for case in those if on_one_grid(case, mask)]):
            return fitting
    return found


class _Nearby:
    """The images by their folders and cases."""

    def __init__(self, cases: Sequence[Candidate]) -> None:
        self._inside: dict[str, list[Candidate]] = defaultdict(list)
        self._below: dict[str, list[Candidate]] = defaultdict(list)
        self._scans: dict[Words, list[Candidate]] = defaultdict(list)
        self._like: dict[tuple[Words, Words], list[Candidate]] = defaultdict(list)
        for case in cases:
            folder = case.first.folder
            self._inside[folder].append(case)
            if case.first.scan:
                self._scans[case.first.scan].append(case)
            self._like[case.first.place, case.case].append(case)
            while folder:
                folder = folder.rpartition("/")[0]
                self._below[folder].append(case)

    def like(self, found: Sequence[Candidate], mask: Named) -> list[Candidate]:
        """Return the images with a mask's place and case.

        None of them if its name equals an image's: mr_seg, mr.
        """
        case = found[0]
        return self._like[case.first.place, case.case] if not mask.exact or mask.exact != case.exact else []

    def find(self, mask: Named, again: bool) -> tuple[list[Candidate], Words, bool] | None:
        """Return the images around a mask without a case's name.

        Such as Segmentation.seg.nrrd, or 7/a and 7/tumour.

        Args:
            mask: that no name fits.
            again: a mask in another folder has this name too, so it names the content.
        """
        inside = self._inside.get(mask.folder, [])
        if inside and (not mask.key or (mask.folder and again)) and (len(inside) == 1 or not mask.key):
            return inside, mask.key, False
        if scans := self._scans.get(mask.scan, []) if mask.scan else []:
            return scans, (), False
        below = self._below.get(mask.folder, [])
        if mask.folder and again and not inside and len(below) == 1:  # 7/pre/flair and 7/lesion
            return below, mask.key, False
        parent = mask.folder.rpartition("/")[0]
        around = self._below.get(parent, [])
        if parent and mask.says_last == "mask" and not inside and len(around) == 1:  # 7/images/a and 7/masks/b
            return around, mask.key if again else (), False
        return None


@dataclass(frozen=True)
class _Key:
    """How the names of image and mask are compared.

    Attributes:
        of_case: words of an image's name that count.
        of_mask: words of a mask's name that count.
        placed: folders count, too.
        prefix: the mask's name has more words than the image's; an equal name takes precedence.
    """

    of_case: Callable[[Candidate], Words]
    of_mask: Callable[[Named], Words]
    placed: bool
    prefix: bool = False


_KEYS = (
    _Key(lambda case: case.exact, lambda mask: mask.exact, placed=True),
    _Key(lambda case: case.key, lambda mask: mask.key, placed=True),
    _Key(lambda case: case.exact, lambda mask: mask.exact, placed=False),
    _Key(lambda case: case.key, lambda mask: mask.key, placed=False),
    _Key(lambda case: case.case, lambda mask: mask.key, placed=True),
    _Key(lambda case: case.case, lambda mask: mask.case, placed=True),
    _Key(lambda case: without_zeros(case.key), lambda mask: without_zeros(mask.key), placed=False),
    _Key(lambda case: case.case, lambda mask: mask.case, placed=False),
    _Key(lambda case: case.key, lambda mask: mask.key, placed=True, prefix=True),
    _Key(lambda case: case.case, lambda mask: mask.case, placed=True, prefix=True),
    _Key(lambda case: case.key, lambda mask: mask.key, placed=False, prefix=True),
    _Key(lambda case: case.case, lambda mask: mask.case, placed=False, prefix=True),
)


class _Finder:
    """Images by one comparison of names."""

    def __init__(self, cases: Sequence[Candidate], key: _Key) -> None:
        self._key = key
        self._cases: dict[Words, list[Candidate]] = defaultdict(list)
        for case in cases:
            words = key.of_case(case)
            place = _place(case.first)
            if key.placed and (place or words):
                self._cases[(*place, "/", *words) if not key.prefix else (*place, *words)].append(case)
            elif not key.placed and words:
                self._cases[words].append(case)

    def find(self, mask: Named) -> tuple[list[Candidate], Words, bool] | None:
        """Return fitting images, a mask's extra words, and the quality."""
        key = self._key
        words = key.of_mask(mask)
        place = _place(mask)
        if key.prefix:
            whole = (*place, *words) if key.placed else words
            for length in range(len(whole) - 1, 0, -1):
                if found := self._cases.get(whole[:length]):
                    return found, whole[length:], False
            return None
        found = self._cases.get((*place, "/", *words)) if key.placed else self._cases.get(words) if words else None
        if not found:
            return None
        # Folders that separate two masks of one image name their contents: leftMask, rightMask.
        extra = () if key.placed else tuple(word for word in place if word not in found[0].first.place)
        return found, extra, True


def _place(named: Named) -> Words:
    """Return the words of folders that tell cases apart.

    Names of lists count, kinds of folder do not.
    """
    return tuple(word for word in named.place if named.split is not None or not is_place(word))


def as_layout(
    kind: LayoutKind, cases: Sequence[Candidate], lost: Iterable[tuple[Named, str]], channels: Words
) -> FolderLayout:
    """Return a layout of cases with their masks.

    Args:
        kind: the layout.
        cases: with the masks that were found for them.
        lost: masks that found no image, and why.
        channels: names of the channels of cases with several files.
    """
    layout = FolderLayout(kind, task="segmentation" if any(c.fitting for c in cases) else None)
    layout.left_out = {mask.path: reason for mask, reason in lost}
    layout.modality = {str(number): name for number, name in enumerate(channels)}
    classes = _one_file_a_class(cases)
    numbers = {name: number for number, name in enumerate(sorted(classes), start=1)}
    layout.labels = {0: "background", **{number: name for name, number in numbers.items()}} if numbers else {}
    for case in cases:
        name = case_name(case)
        fitting = case.fitting
        for several, reason in ((case.loose, _ANOTHER), (case.masks, _NOT_DRAWN)):
            layout.left_out |= {mask.path: reason for mask, extra in several if (mask, extra) not in fitting}
        label: str | tuple[Part, ...] | None = fitting[0][0].path if len(fitting) == 1 and not numbers else None
        if fitting and numbers and {_class(extra) for _, extra in fitting} <= set(numbers):
            label = tuple(
                Part(mask.path, numbers[_class(extra)], name=_class(extra))
                for mask, extra in sorted(fitting, key=lambda pair: pair[0].path)
            )
        elif fitting and label is None:
            layout.bad.append(Quarantined(name=name, reason=_why_not(fitting), source=case.first.path))
            layout.left_out |= {mask.path: "mask of an image that is set aside for its masks" for mask, _ in fitting}
            continue
        images = tuple(image.path for image in case.images)
        patient = patient_of(images[0], _patient(case))
        notes = _lacking(case, cases, set(numbers)) if isinstance(label, tuple) else ()
        layout.items.append(
            Item(name=name, patient=patient, images=images, label=label, split=case.first.split, notes=notes)
        )
        if case.shared:
            layout.unlabelled[images[0]] = (
                f"its mask may be of several images: {', '.join(mask.path for mask in case.shared[:3])}. "
                "List both in a table (image, label)"
            )
    if all(item.split in {"validation", "test"} for item in layout.items):  # a folder named test is no list
        layout.items = [replace(item, split=None) for item in layout.items]
    layout.items = unique(layout.items)
    return layout


def _one_file_a_class(cases: Sequence[Candidate]) -> set[str]:
    """Return the classes if images have a mask per class."""
    several = [case for case in cases if len(case.fitting) > 1]
    plain = [case for case in several if "" in {_class(extra) for _, extra in case.fitting}]
    # Where most images have a single mask, an image with several is an exception.
    single = [case for case in cases if len(case.fitting) == 1 and not _class(case.fitting[0][1])]
    if not several or len(plain) * 2 > len(several) or len(single) > len(several):
        return set()
    found: set[str] = set()
    for case in cases:
        names = [_class(extra) for _, extra in case.fitting]
        if len(set(names)) == len(names):
            found |= set(names)
    return found - {""}


def _lacking(case: Candidate, cases: Sequence[Candidate], classes: set[str]) -> tuple[str, ...]:
    """Return notes on classes without a mask for this image."""
    others = [{_class(extra) for _, extra in other.fitting} for other in cases if other is not case and other.fitting]
    has = {_class(extra) for _, extra in case.fitting}
    counts = {name: sum(name in of for of in others) for name in sorted(classes - has)}
    usual = {name: count for name, count in counts.items() if 2 * count > len(others)}
    said = [
        f"no mask of {name}, which {counted(count, 'other image')} {'has' if count == 1 else 'have'}"
        for name, count in usual.items()
    ]
    more = f"no mask of {len(said) - _MOST_TOLD} more classes that most other images have"
    return (*said[:_MOST_TOLD], *([more] if len(said) > _MOST_TOLD else []))


def _why_not(fitting: Sequence[tuple[Named, Words]]) -> str:
    several = ", ".join(mask.path for mask, _ in fitting[:4])
    if len(fitting) == 1:
        what = f"its mask's name ({several}) does not say its class, as those of other images do"
        return f"{what}. Rename it, or name its class in a table (image, label)"
    return f"has {len(fitting)} masks ({several}), expected one, or one a class. Say which in a table (image, label)"


def _class(extra: Words) -> str:
    extra = without_mask_words(extra)
    return "" if all(word.isdigit() for word in extra) else "_".join(extra)


def case_name(case: Candidate) -> str:
    """Return a case's name by its first file.

    With several channels, from what their names share.
    """
    path = case.first.path
    top = path.split("/", 1)[0]
    if top in IMAGE_FOLDERS and "/" in path:
        path = path[len(top) + 1 :]
    if not case.key and "/" in path:  # the file names the role, the folder the case: case_7/imaging.nii.gz
        return path.rsplit("/", 1)[0].replace("/", "_")
    name = name_of(path)
    if len(case.images) == 1 and not case.numbered:
        return name
    cut = name.lower().rfind(case.first.bare[-1] if case.numbered else case.first.channel or "")
    return name[:cut].rstrip("_-. ") or name


def _patient(case: Candidate) -> str:
    """Return the default patient; empty where none is implied.

    Files whose names differ only by a channel are of one patient.
    """
    named = case.first
    if not named.case and named.folder:
        return named.folder.replace("/", "_")
    if len(case.images) == 1 and named.channel and named.case and named.case != named.key:
        return "/".join((*_place(named), "-".join(named.case)))
    return ""
