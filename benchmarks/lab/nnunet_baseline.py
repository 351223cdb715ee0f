"""nnU-Net as a baseline, in an environment of its own that shares this one's torch."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environment import with_package
from oncofed.processes import process_environment

VERSION = "2.8.0"
_APP = Path(__file__).parent / "nnunet_app" / "run.py"
_NUMBER, _NAME = 4, "Dataset004_Hippocampus"
_HOURS = 12


@dataclass(frozen=True)
class Nnunet:
    """nnU-Net with a dataset of its own.

    Attributes:
        folder: of its environment, dataset and results.
        device: "cpu" or "cuda".
    """

    folder: Path
    device: str

    @property
    def plans(self) -> Path:
        """Its plan, once ``plan`` has made it."""
        return self.folder / "preprocessed" / _NAME / "nnUNetPlans.json"

    @property
    def log(self) -> Path:
        """What it says."""
        return self.folder / "nnunet.log"

    def take(self, train: Mapping[str, Path], test: Mapping[str, Path], masks: Path, labels: Mapping[str, int]) -> None:
        """Lay out its dataset.

        Args:
            train: case -> image, NIfTI; the mask has the same file name.
            test: likewise, of held-out cases, whose masks it does not get.
            masks: folder of the masks.
            labels: name -> label value, without background.
        """
        for part in ("imagesTr", "labelsTr", "imagesTs"):
            (self._raw / part).mkdir(parents=True)
        for name, image in train.items():
            (self._raw / "imagesTr" / f"{name}_0000.nii.gz").symlink_to(image.resolve())
            (self._raw / "labelsTr" / f"{name}.nii.gz").symlink_to((masks / image.name).resolve())
        for name, image in test.items():
            (self._raw / "imagesTs" / f"{name}_0000.nii.gz").symlink_to(image.resolve())
        dataset = {
            "channel_names": {"0": "MRI"},
            "labels": {"background": 0, **labels},
            "numTraining": len(train),
            "file_ending": ".nii.gz",
        }
        (self._raw / "dataset.json").write_text(json.dumps(dataset), encoding="utf-8")

    def plan(self, narrower: int = 1, batch: int | None = None) -> None:
        """Let it plan and preprocess.

        Args:
            narrower: by which feature maps of its plan are divided; 1: as it planned.
            batch: in place of its plan's; None: as it planned.

        Raises:
            OSError, subprocess.SubprocessError: it cannot be installed or run here.
        """
        # Its planner takes the number of augmenting processes for torch's threads: one at least.
        self._run({"do": "plan", "narrower": narrower, "batch": batch}, {"nnUNet_n_proc_DA": "1"})

    def train(self, steps: int, seed: int) -> tuple[dict[str, Path], float]:
        """Train it, and let it segment the held-out cases.

        Args:
            steps: of its optimizer.
            seed: of its random numbers.

        Returns:
            Case -> its segmentation, and the seconds of the training alone: on a CPU the processor's, which other
            programs do not change.

        Raises:
            OSError, subprocess.SubprocessError: it cannot be installed or run here.
        """
        out = self.folder / f"seed-{seed}"
        images = sorted(str(path) for path in (self._raw / "imagesTs").iterdir())
        own = {"do": "train", "steps": steps, "seed": seed, "device": self.device, "images": images, "out": str(out)}
        # More processes than a small machine's cores stand in each other's way.
        self._run(own, {"nnUNet_n_proc_DA": "0" if (os.cpu_count() or 1) <= 2 else str(min(12, os.cpu_count() or 1))})
        found = json.loads((out / "training.json").read_text(encoding="utf-8"))
        seconds = found["processor" if self.device == "cpu" else "seconds"]
        return {path.name.removesuffix(".nii.gz"): path for path in sorted(out.glob("*.nii.gz"))}, seconds

    @property
    def _raw(self) -> Path:
        return self.folder / "raw" / _NAME

    def _run(self, settings: Mapping[str, Any], variables: Mapping[str, str]) -> None:
        programs = with_package(self.folder / "environment", f"nnunetv2=={VERSION}", shared=True)
        own = {
            "nnUNet_raw": str(self._raw.parent),
            "nnUNet_preprocessed": str(self.plans.parents[1]),
            "nnUNet_results": str(self.folder / "results"),
            **variables,
        }
        files = {"number": _NUMBER, "plans": str(self.plans), "dataset": str(self._raw / "dataset.json")}
        path = self.folder / "settings.json"
        path.write_text(json.dumps({**files, **settings}), encoding="utf-8")
        command: Sequence[str] = [str(programs / "python"), str(_APP), str(path)]
        environment = {**process_environment(self.folder / "tmp", 1), **own}
        with self.log.open("ab") as output:
            subprocess.run(command, check=True, timeout=_HOURS * 3600, env=environment, stdout=output, stderr=output)
