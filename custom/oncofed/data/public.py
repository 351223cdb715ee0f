"""Download public datasets, checked and resumable."""

from __future__ import annotations

import errno
import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from oncofed.errors import DataError

Progress = Callable[[str, int, int], None]

_BLOCK = 1 << 20
_SECONDS_OF_SILENCE = 60
_AWS = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
_ZENODO = "https://zenodo.org/records/10519652/files"


@dataclass(frozen=True)
class PublicSet:
    """A freely available dataset.

    Attributes:
        title: one line.
        url: of its one file.
        md5: of that file, as its publishers give it.
        megabytes: of that file, about.
        licence: under which it is published.
        job: example job that uses it.
        dataset: name of the dataset in that job.
        classes: of images that lie in one array; empty for an archive of files.
        findings: the same, where several may hold of an image.
        folder: what an archive unpacks to.
    """

    title: str
    url: str
    md5: str
    megabytes: int
    licence: str
    job: str
    dataset: str
    classes: tuple[str, ...] = ()
    folder: str = ""
    findings: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """What ``oncofed data register --targets`` is told of it."""
        return (f"findings=labels:{','.join(self.findings)}",) if self.findings else ()

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2].partition("?")[0]


# Addresses and checksums: MONAI's DecathlonDataset and MedMNIST 3.0.2.
PUBLIC = {
    "hippocampus": PublicSet(
        title="Medical Segmentation Decathlon, task 4: hippocampus on MRI",
        url=f"{_AWS}/Task04_Hippocampus.tar",
        md5="9d24dba78a72977dbd1d2e110310f31b",
        megabytes=28,
        licence="CC-BY-SA 4.0",
        job="hippocampus_segmentation",
        dataset="hippocampus",
        folder="Task04_Hippocampus",
    ),
    "spleen": PublicSet(
        title="Medical Segmentation Decathlon, task 9: spleen on CT",
        url=f"{_AWS}/Task09_Spleen.tar",
        md5="410d4a301da4e5b2f6f86ec3ddba524e",
        megabytes=1600,
        licence="CC-BY-SA 4.0",
        job="ct_organ_segmentation",
        dataset="spleen",
        folder="Task09_Spleen",
    ),
    "liver": PublicSet(
        title="Medical Segmentation Decathlon, task 3: liver and its tumours on CT",
        url=f"{_AWS}/Task03_Liver.tar",
        md5="a90ec6c4aa7f6a3d087205e23d4e6397",
        megabytes=28_700,
        licence="CC-BY-SA 4.0",
        job="partial_organs_segmentation",
        dataset="organs_liver",
        folder="Task03_Liver",
    ),
    "pancreas": PublicSet(
        title="Medical Segmentation Decathlon, task 7: pancreas and its tumours on CT",
        url=f"{_AWS}/Task07_Pancreas.tar",
        md5="4f7080cfca169fa8066d17ce6eb061e4",
        megabytes=12_300,
        licence="CC-BY-SA 4.0",
        job="partial_organs_segmentation",
        dataset="organs_pancreas",
        folder="Task07_Pancreas",
    ),
    "brain_tumour": PublicSet(
        title="Medical Segmentation Decathlon, task 1: brain tumours on MRI, four sequences",
        url=f"{_AWS}/Task01_BrainTumour.tar",
        md5="240a19d752f0d9e9101544901065d872",
        megabytes=7_600,
        licence="CC-BY-SA 4.0",
        job="brain_tumour_regions",
        dataset="brain_tumour",
        folder="Task01_BrainTumour",
    ),
    "pathmnist": PublicSet(
        title="MedMNIST: 107,180 tiles of colorectal H&E slides, 64 pixels a side",
        url=f"{_ZENODO}/pathmnist_64.npz?download=1",
        md5="55aa9c1e0525abe5a6b9d8343a507616",
        megabytes=1080,
        licence="CC-BY 4.0",
        job="tile_classification",
        dataset="tiles",
        classes=(
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
    ),
    "pneumoniamnist": PublicSet(
        title="MedMNIST: 5,856 chest X-rays of children, 128 pixels a side",
        url=f"{_ZENODO}/pneumoniamnist_128.npz?download=1",
        md5="05b46931834c231683c68f40c47b2971",
        megabytes=65,
        licence="CC-BY 4.0",
        job="xray_classification",
        dataset="chest_xray",
        classes=("normal", "pneumonia"),
    ),
    "chestmnist": PublicSet(
        title="MedMNIST: 112,120 chest X-rays of ChestX-ray14 with 14 findings, 64 pixels a side",
        url=f"{_ZENODO}/chestmnist_64.npz?download=1",
        md5="9de6cd0b934ebb5b7426cfba5efbae16",
        megabytes=402,
        licence="CC-BY 4.0",
        job="chest_findings",
        dataset="chest_findings",
        findings=(
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural thickening",
            "hernia",
        ),
    ),
}


def get(name: str, target: Path, progress: Progress | None = None) -> Path:
    """Fetch and unpack a public dataset, unless present.

    Args:
        name: of ``PUBLIC``.
        target: folder for the file and what it unpacks to.
        progress: called with (step, bytes or images done, number in all).

    Returns:
        The folder to register.

    Raises:
        DataError: there is no such dataset, no network, or the file is not what was published.
    """
    if name not in PUBLIC:
        raise DataError(f"unknown public dataset {name!r}; known are {', '.join(sorted(PUBLIC))}.")
    public = PUBLIC[name]
    progress = progress or (lambda what, done, total: None)
    target.mkdir(parents=True, exist_ok=True)
    unpacked = target / (public.folder or name)
    if unpacked.is_dir():
        return unpacked
    file = _fetch(public, target / public.file, progress)
    partly = target / f".{unpacked.name}.unfinished"
    shutil.rmtree(partly, ignore_errors=True)
    partly.mkdir()
    if public.classes or public.findings:
        _write_images(file, partly, public, progress)
        partly.replace(unpacked)
    else:
        progress("unpacking", 0, 0)
        _unpack(file, partly)
        (partly / public.folder).replace(unpacked)
        shutil.rmtree(partly)
    return unpacked


def _fetch(public: PublicSet, file: Path, progress: Progress) -> Path:
    """Return the downloaded file, checked; a part is resumed."""
    if file.is_file():
        _require_checksum(public, file, progress)
        return file
    part = file.with_name(f"{file.name}.part")
    try:
        _download(public.url, part, progress)
    except (OSError, http.client.HTTPException, urllib.error.URLError) as error:
        raise DataError(
            f"{public.url} cannot be fetched ({_why_not(error)}). What has arrived is kept: run the command again to "
            f"go on. Without a network, put the file there yourself: {file}"
        ) from None
    _require_checksum(public, part, progress)
    return part.replace(file)


def _why_not(error: Exception) -> str:
    """Return why a download failed."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered with status {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return "nothing came in time"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return "the connection failed or ended early"


def _download(url: str, part: Path, progress: Progress) -> None:
    have = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - from the table above
    try:
        answer = urllib.request.urlopen(request, timeout=_SECONDS_OF_SILENCE)  # noqa: S310 - the same
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # range not satisfiable: the file is complete
            return
        raise
    with answer:
        if have and answer.status != 206:  # a server that cannot resume sends the whole file
            have = 0
        total = have + int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if have else "wb") as out:
            while block := answer.read(_BLOCK):
                out.write(block)
                have += len(block)
                progress("fetching", have, total)
    if have < total:
        raise ConnectionError(errno.ECONNRESET, f"the connection ended after {have} of {total} bytes")


def _require_checksum(public: PublicSet, file: Path, progress: Progress) -> None:
    progress("checking", 0, 0)
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while block := content.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != public.md5:
        found = digest.hexdigest()
        size = file.stat().st_size
        file.unlink()
        raise DataError(
            f"{file.name}: its MD5 is {found} ({size} bytes), expected {public.md5}. It was removed; fetch it again."
        )


def _unpack(file: Path, folder: Path) -> None:
    try:
        with tarfile.open(file) as archive:
            # "data" refuses paths and links out of the folder, and devices.
            archive.extractall(folder, filter="data")
    except tarfile.TarError as error:
        shutil.rmtree(folder)
        hostile = isinstance(error, tarfile.FilterError)
        found = "it holds a path or a link that leads out of its folder" if hostile else "it is damaged"
        raise DataError(
            f"{file.name} is no archive that can be unpacked: {found}. Remove it and fetch it again."
        ) from None


def _write_images(file: Path, folder: Path, public: PublicSet, progress: Progress) -> None:
    """Write a MedMNIST array as PNG, by split and class, and a table of them."""
    rows = [",".join(["image", *(public.findings or ["label"]), "split"])]
    with np.load(file) as arrays:
        for split, name in (("train", "training"), ("val", "validation"), ("test", "test")):
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            for number, (image, label) in enumerate(zip(images, labels.reshape(len(images), -1), strict=True)):
                told = [str(int(one)) for one in label] if public.findings else [public.classes[int(label[0])]]
                of_class = "" if public.findings else told[0].replace(" ", "_")
                path = folder / name / of_class / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, compress_level=1)
                rows.append(",".join([str(path.relative_to(folder)), *told, name]))
                if number % 100 == 0:
                    progress(f"writing {name} images", number, len(images))
    (folder / "cases.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
