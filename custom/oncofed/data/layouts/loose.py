"""Images with masks, anywhere in a folder, and without."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oncofed.data.layouts.base import FolderLayout
from oncofed.data.layouts.content import masks_among, on_one_grid
from oncofed.data.layouts.kinds import LOOSE, WITH_MASKS, LayoutKind
from oncofed.data.layouts.names import IMAGE_FOLDERS, LABEL_FOLDERS, Named, Words
from oncofed.data.layouts.pairing import Candidate, as_layout, case_name, pair
from oncofed.data.layouts.telling import with_quiet_folders
from oncofed.data.manifest import Quarantined

_LOOKED_AT = 3
LOOKS_LIKE_MASK = (
    "file that looks like a mask (few whole numbers, on the grid of an image): name it as its image (CASE_seg beside "
    "CASE), or list both in a table (image, label)"
)
_COUNTED = re.compile(r"\d{4}")


def loose_images(root: Path, files: Sequence[str], masks: Sequence[Named], others: Sequence[Named]) -> FolderLayout:
    """Return a folder's cases by names and places alone.

    Args:
        root: the folder.
        files: all of it.
        masks: its masks; see ``separate``.
        others: its images.
    """
    cases = _by_case(root, others, masks)

    def fits(case: Candidate, mask: Named) -> bool:
        return on_one_grid(root, [case.first.path, mask.path])

    lost = pair([*cases.good, *(case for case, _ in cases.bad)], masks, fits)
    lost = [(mask, reason if mask.role == "mask" else LOOKS_LIKE_MASK) for mask, reason in lost]
    layout = as_layout(_kind(files), cases.good, lost, cases.channels)
    layout.left_out |= {image.path: "channel that most cases lack" for image in cases.spare}
    for case, reason in cases.bad:
        path = case.first.path
        layout.bad.append(Quarantined(name=case_name(case), reason=reason, source=path))
        of_case = (*case.images[1:], *(mask for mask, _ in (*case.masks, *case.loose)))
        layout.left_out |= {named.path: "file of a case that lacks a channel" for named in of_case}
    return layout


def separate(root: Path, named: Sequence[Named]) -> tuple[list[Named], list[Named]]:
    """Return masks and images.

    By their names, or by inspecting a few if names do not tell.
    """
    named = with_quiet_folders(root, named)
    others = [n for n in named if n.role != "mask"]
    looked = masks_among(root, others)
    masks = [n for n in named if n.role == "mask" or n.path in looked]
    return masks, [n for n in others if n.path not in looked]


def _kind(files: Sequence[str]) -> LayoutKind:
    tops = {f.split("/", 1)[0] for f in files if "/" in f}
    return WITH_MASKS if tops & set(IMAGE_FOLDERS) and tops & set(LABEL_FOLDERS) else LOOSE


@dataclass
class _Cases:
    """The images of a folder by case.

    Attributes:
        good: cases with the channels that most have.
        bad: cases that lack channels, and which.
        spare: files of channels that most cases lack.
        channels: names of the channels, if cases have several.
    """

    good: list[Candidate] = field(default_factory=list)
    bad: list[tuple[Candidate, str]] = field(default_factory=list)
    spare: list[Named] = field(default_factory=list)
    channels: Words = ()


def _by_case(root: Path, images: Sequence[Named], masks: Sequence[Named]) -> _Cases:
    """Return the cases of a folder.

    Files of a folder whose names differ only by the sequence (``X_t1``, ``X_flair``) are one case if they lie on one
    grid; so are ``X_0000`` and ``X_0001`` if a mask is named ``X``.
    """
    groups: dict[tuple[object, ...], list[Named]] = defaultdict(list)
    of_masks = {mask.key for mask in masks}
    of_cases = {mask.key for mask in masks if not mask.channel}  # one mask for all sequences
    for image in images:
        folder = image.folder
        if (
            len(image.bare[-1:]) == 1
            and _COUNTED.fullmatch(image.bare[-1])
            and image.key[:-1] in of_masks - {image.key}
        ):
            groups[folder, "number", image.bare[:-1]].append(image)
        elif image.channel and ("sub" not in image.bare or image.case in of_cases):
            groups[folder, "sequence", tuple(w for w in image.bare if w != image.channel)].append(image)
        else:
            groups[folder, image.path].append(image)
    several = [group for group in groups.values() if len(group) > 1]
    joined = all(on_one_grid(root, [image.path for image in group]) for group in several[:_LOOKED_AT])
    cases = []
    for key, group in groups.items():
        numbered = key[1] == "number"
        ordered = sorted(group, key=lambda image: (image.channel or "", image.path))
        parts = [ordered] if joined else [[image] for image in ordered]
        cases += [Candidate(part, numbered and len(part) == len(group)) for part in parts]
    counts = Counter(_channels(case) for case in cases if len(case.images) > 1)
    if not counts:
        return _Cases(cases)
    usual = max(counts, key=lambda words: (counts[words], sum(set(has) >= set(words) for has in counts), len(words)))
    single = Counter(_channels(case) for case in cases if len(case.images) == 1 and _channels(case))
    if single.total() > sum(counts.values()):
        return _of_one_channel(cases, single)
    found = _Cases(channels=usual if not usual[0].isdigit() else ())
    for case in cases:
        has = _channels(case)
        if has and not case.numbered and not set(has) & set(usual):  # a separate sequence, of another grid or folder
            found.spare += case.images
            continue
        if has and not set(has) >= set(usual):
            reason = f"has {len(has)} channels ({', '.join(has)}), expected {len(usual)} ({', '.join(usual)})"
            found.bad.append((case, f"{reason}; a file is missing"))
            continue
        found.spare += [image for image in case.images if has and _channel(image) not in usual]
        kept = [image for image in case.images if not has or _channel(image) in usual]
        found.good.append(Candidate(kept, case.numbered))
    return found


def _of_one_channel(cases: Sequence[Candidate], single: Counter[Words]) -> _Cases:
    """Return cases of one channel.

    From cases with several channels, the one that most have.
    """
    found = _Cases()
    for case in cases:
        if len(case.images) == 1:
            found.good.append(case)
            continue
        has = {_channel(image): image for image in case.images}
        usual = max(has, key=lambda channel: (single[channel,], channel))
        if single[usual,]:
            found.good.append(Candidate([has[usual]], case.numbered))
            found.spare += [image for image in case.images if image is not has[usual]]
        else:
            reason = f"has {len(has)} channels ({', '.join(has)}), expected 1, as most cases have. Move the others away"
            found.bad.append((case, reason))
    return found


def _channel(image: Named) -> str:
    return image.channel or image.bare[-1]


def _channels(case: Candidate) -> Words:
    """Return a case's channels by its files' names."""
    return tuple(_channel(image) for image in case.images if case.numbered or image.channel)
