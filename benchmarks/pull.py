"""Pulling from a PACS: objects a second from a real Orthanc on this machine.

By DICOMweb against dicomweb-client alone, which asks for the same series and writes what it gives; by C-GET against
getscu of dcmtk. Both fetch one series after the other and start with their UIDs, which oncofed has to find first;
oncofed has four connections, and syncs each file to disk.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dicoms import make_series
from harness.bench import Bench
from harness.results import Target
from oncofed.errors import SpecError
from orthancs import CALLING, TITLE, Orthanc, why_no_orthanc

_SERIES, _SERIES_QUICK, _SLICES, _SLICES_QUICK, _SIDE = 20, 2, 100, 5, 256
_TARGET = Target(of="baseline", value=0.8)
_NAMES = ("pulling by DICOMweb", "pulling by C-GET")


def run(bench: Bench) -> None:
    """Measure both protocols."""
    why = why_no_orthanc() or ("" if shutil.which("getscu") else "needs dcmtk: make hospital")
    if why:
        for name in _NAMES:
            bench.skip(name, "objects/s", why)
        return
    series, slices = (_SERIES_QUICK, _SLICES_QUICK) if bench.quick else (_SERIES, _SLICES)
    with Orthanc(bench.folder / "orthanc") as orthanc:
        bench.doing("filling Orthanc")
        values = np.random.default_rng(0).integers(0, 900, (_SIDE, _SIDE, slices)).astype(np.int16)
        for number in range(series):
            orthanc.add(make_series(bench.folder / "in", values + number, patient=f"MRN-{number}", modality="CT"))
        known = [
            (one["0020000D"]["Value"][0], one["0020000E"]["Value"][0]) for one in orthanc.call("GET", _SERIES_PATH)
        ]
        for name, protocol, other, alone in (
            (_NAMES[0], "web", "dicomweb-client", _dicomweb_client),
            (_NAMES[1], "get", "getscu", _getscu),
        ):
            out = bench.folder / protocol
            bench.race(
                name,
                {
                    "oncofed": _oncofed(orthanc, protocol, out, series * slices),
                    other: _emptied(out, alone, orthanc, known, series * slices),
                },
                unit="objects/s",
                amount=series * slices,
                target=_TARGET,
                settings={"objects": series * slices, "side": _SIDE, "connections": 4},
            )


_SERIES_PATH = "/dicom-web/series"


def _oncofed(orthanc: Orthanc, protocol: str, out: Path, count: int) -> Callable[[], None]:
    from oncofed.hospital.cohort import read_cohort
    from oncofed.hospital.pull import PullOptions, pull
    from oncofed.hospital.settings import PacsSettings

    query = out.with_suffix(".yaml")
    query.write_text("modality: CT\n", encoding="utf-8")
    settings = PacsSettings.model_validate({**orthanc.pacs(protocol), "keep_free_gb": 0})
    options = PullOptions(read_cohort(query), settings, out, out.with_suffix(".key"))

    def program() -> None:
        shutil.rmtree(out, ignore_errors=True)
        outcome = pull(options, lambda what, done, total: None, lambda text: None)
        if outcome.arrived.objects != count:
            raise SpecError(f"{outcome.arrived.objects} objects arrived, expected {count}")

    return program


def _emptied(
    out: Path,
    alone: Callable[[Orthanc, list[tuple[str, str]], Path], None],
    orthanc: Orthanc,
    series: list[tuple[str, str]],
    count: int,
) -> Callable[[], None]:
    def program() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        alone(orthanc, series, out)
        found = sum(1 for path in out.rglob("*") if path.is_file())
        if found != count:
            raise SpecError(f"{found} objects arrived, expected {count}")

    return program


def _dicomweb_client(orthanc: Orthanc, series: list[tuple[str, str]], out: Path) -> None:
    from dicomweb_client import DICOMwebClient

    client = DICOMwebClient(f"http://127.0.0.1:{orthanc.http}/dicom-web")
    as_stored = (("application/dicom", "*"),)
    for study, uid in series:
        for dataset in client.iter_series(study, uid, media_types=as_stored):
            dataset.save_as(out / f"{dataset.SOPInstanceUID}.dcm")


def _getscu(orthanc: Orthanc, series: list[tuple[str, str]], out: Path) -> None:
    for study, uid in series:
        keys = ["QueryRetrieveLevel=SERIES", f"StudyInstanceUID={study}", f"SeriesInstanceUID={uid}"]
        arguments = [part for key in keys for part in ("-k", key)]
        where = ["-aet", CALLING, "-aec", TITLE, "127.0.0.1", str(orthanc.dicom)]
        subprocess.run(["getscu", "-S", *arguments, "-od", str(out), *where], check=True, capture_output=True)
