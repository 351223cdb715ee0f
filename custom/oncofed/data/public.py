"""Download public datasets, checked and resumable."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from oncofed.data.downloads import Download, Progress, fetch
from oncofed.data.published import md5_of, published_files, read_checksums
from oncofed.errors import DataError

_AWS = "https://msd-for-monai.s3-us-west-2.amazonaws.com"
_ZENODO = "https://zenodo.org/records/10519652/files"


@dataclass(frozen=True)
class PublicSet:
    """A freely available dataset.

    Attributes:
        title: one line.
        licence: under which it is published.
        job: example job that uses it.
        dataset: name of the dataset in that job.
        url: of its one file; empty where ``records`` names several.
        md5: of that file, as its publishers give it.
        megabytes: of that file, about; None: its records say it when they are asked.
        records: files by the number of their record at Zenodo, which states their checksums.
        classes: of images that lie in one array; empty for an archive of files.
        findings: the same, where several may hold of an image.
        folder: what an archive unpacks to.
        boxes: a table of objects among its files, with centres in mm as DICOM has them.
        boxes_class: of these.
    """

    title: str
    licence: str
    job: str
    dataset: str
    url: str = ""
    md5: str = ""
    megabytes: int | None = None
    records: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    folder: str = ""
    findings: tuple[str, ...] = ()
    boxes: str = ""
    boxes_class: str = ""

    @property
    def targets(self) -> tuple[str, ...]:
        """What ``oncofed data register --targets`` is told of it."""
        return (f"findings=labels:{','.join(self.findings)}",) if self.findings else ()

    def commands(self, folder: Path) -> list[list[str]]:
        """Return the arguments of ``oncofed data`` by which it becomes the job's dataset.

        Args:
            folder: that was unpacked.
        """
        said = [part for target in self.targets for part in ("--targets", target)]
        found = [["register", str(folder), "--dataset", self.dataset, *said]]
        if self.boxes:
            of_boxes = ["--coordinates", "lps", "--name", self.boxes_class, "--rest-has-none"]
            found.append(["boxes", self.dataset, str(folder / self.boxes), *of_boxes])
        return found


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
    "luna16": PublicSet(
        title="LUNA16: 888 CT of the chest with 1,186 nodules",
        licence="CC-BY 4.0",
        job="lung_nodule_detection",
        dataset="lung_nodules",
        # https://luna16.grand-challenge.org/Download; the checksums are not in print.
        records={
            3723295: ("annotations.csv", *(f"subset{number}.zip" for number in range(7))),
            4121926: tuple(f"subset{number}.zip" for number in range(7, 10)),
        },
        boxes="annotations.csv",
        boxes_class="nodule",
    ),
}


def get(
    name: str,
    target: Path,
    progress: Progress | None = None,
    checksums: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Fetch and unpack a public dataset, unless present.

    Args:
        name: of ``PUBLIC``.
        target: folder for the files and what they unpack to.
        progress: called with (step, bytes or images done, number in all).
        checksums: a list as ``md5sum`` writes it, which goes before the publisher's; None: the publisher's.
        say: is given what will be fetched, in one sentence, where the set is of several files.

    Returns:
        The folder to register.

    Raises:
        DataError: there is no such dataset, no network, or a file is not what was published.
    """
    if name not in PUBLIC:
        raise DataError(f"unknown public dataset {name!r}; known are {', '.join(sorted(PUBLIC))}.")
    public = PUBLIC[name]
    progress = progress or (lambda what, done, total: None)
    own = read_checksums(checksums) if checksums else None
    target.mkdir(parents=True, exist_ok=True)
    unpacked = target / (public.folder or name)
    if unpacked.is_dir():
        return unpacked
    partly = target / f".{unpacked.name}.unfinished"
    if public.records:
        archives = target / f"{name}_archives"
        files = [fetch(one, archives, progress) for one in published_files(public.records, archives, own, say)]
        _unpack_all(files, partly, progress)
        return partly.replace(unpacked)
    download = Download(public.url, public.md5)
    if own is not None:
        download = Download(public.url, md5_of(own, download.name))
    file = fetch(download, target, progress)
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


def _unpack_all(files: Sequence[Path], folder: Path, progress: Progress) -> None:
    """Unpack each archive into a folder of its name, unless that was done before, and copy other files.

    Raises:
        DataError: an archive cannot be unpacked, or the disk is too small.
    """
    folder.mkdir(exist_ok=True)
    for number, file in enumerate(files):
        progress("unpacking", number, len(files))
        done = folder / file.stem
        if file.suffix != ".zip":
            shutil.copyfile(file, folder / file.name)
        elif not done.is_dir():
            begun = folder / f".{file.stem}.unfinished"
            shutil.rmtree(begun, ignore_errors=True)
            _unpack_zip(file, begun, done)
            # An archive may hold one folder of its own name.
            inner = begun / file.stem
            (inner if [*begun.iterdir()] == [inner] and inner.is_dir() else begun).replace(done)
            shutil.rmtree(begun, ignore_errors=True)


def _unpack_zip(file: Path, folder: Path, done: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            needed, free = sum(one.file_size for one in archive.infolist()), shutil.disk_usage(folder.parent).free
            if needed > free:
                raise DataError(
                    f"{file.name} unpacks to {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free. Free some, and "
                    "run the command again to go on."
                )
            archive.extractall(folder)  # noqa: S202 - zipfile keeps paths within it, and makes no links
    except NotImplementedError:
        raise DataError(
            f"{file.name} is compressed by a method that Python cannot read, such as Deflate64. Unpack it with another "
            f"program, such as 7z x {file} -o{done}, and run the command again to go on."
        ) from None
    except (zipfile.BadZipFile, zlib.error, EOFError):
        raise DataError(
            f"{file.name} is no archive that can be unpacked: it is damaged. Remove it and fetch it again."
        ) from None


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
