"""Runs bundles with MONAI alone, to compare with oncofed.

Their process cannot import oncofed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file

from oncofed.data.case import Case
from oncofed.data.inputs import Prepared
from oncofed.tasks.inferred import ClassScores, LabelMap
from oncofed.training.plan import Plan

CPU = torch.device("cpu")

# Begins a process that cannot import oncofed, nor needs libraries of plots and texts, which MONAI finds.
_ALONE = (
    "import gc, sys; gc.disable(); "
    "sys.modules.update(dict.fromkeys(('oncofed', 'matplotlib', 'pandas', 'sklearn', 'transformers', 'zarr')))"
)
_CHILD = """
import json, os
import torch
torch.set_num_threads(1)
from monai.bundle import ConfigWorkflow
from safetensors.numpy import save_file
gc.freeze()
gc.enable()

for run in json.load(open(sys.argv[1])):
    config = os.path.join(run["bundle"], "configs", "inference.json")
    settings = dict(bundle_root=run["bundle"], dataset_dir=run["images"], output_dir=run["out"], **run["more"])
    os.makedirs(run["out"], exist_ok=True)
    try:
        workflow = ConfigWorkflow(config_file=config, workflow_type="infer", **settings)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        get = workflow.parser.get_parsed_content
        if "pipeline" in workflow.parser:
            with torch.no_grad():
                maps = {
                    os.path.basename(str(case["image"])): get("predict")(get("preprocessing")(case))["pred"].numpy()
                    for case in get("datalist")
                }
            save_file(maps, os.path.join(run["out"], "maps.safetensors"))
    except Exception as error:
        causes = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        with open(os.path.join(run["out"], "refused.txt"), "w") as file:
            file.write("\\n".join(map(str, causes)))
"""


def command_of_monai(*words: str) -> list[str]:
    """Return MONAI's command line for bundles, in a process without oncofed."""
    alone = f"{_ALONE}; import runpy; runpy.run_module('monai.bundle', run_name='__main__')"
    return [sys.executable, "-W", "ignore", "-c", alone, *words]


@dataclass
class Run:
    """One bundle and a folder of images for it."""

    bundle: str
    images: str
    out: str
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def refused(self) -> str:
        """Why it did not answer; empty: it did."""
        said = Path(self.out, "refused.txt")
        return said.read_text() if said.is_file() else ""

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """The network's output for each image, on the working grid."""
        return load_file(Path(self.out, "maps.safetensors"))

    @property
    def probabilities(self) -> dict[str, list[float]]:
        """Of each image."""
        found: dict[str, list[float]] = json.loads(Path(self.out, "predictions.json").read_text())["probabilities"]
        return found


def prepare(folder: Path, plan: Plan, seed: int = 5) -> Run:
    """Return a run of a plan's bundle, without images yet.

    The weights differ from the initial ones.
    """
    images, out = folder / "images", folder / "out"
    images.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: value + 0.3 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and value.numel() > 1
        else value
        for name, value in plan.initial_weights().items()
    }
    bundle = plan.write_bundle(folder, "A model", weights)
    assert bundle is not None
    return Run(str(bundle), str(images), str(out))


def run_all(folder: Path, runs: list[Run]) -> None:
    """Run bundles in one process: to import MONAI takes seconds."""
    script, listed = folder / "child.py", folder / "runs.json"
    script.write_text(f"{_ALONE}\n{_CHILD}")
    listed.write_text(json.dumps([asdict(run) for run in runs]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", script, listed], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


class Scored:
    """What oncofed finds with the weights of a run's bundle."""

    def __init__(self, plan: Plan, run: Run, spacing: tuple[float, ...] | None = None) -> None:
        self._task, self._spacing = plan.build_task(), spacing
        self.network = plan.build_network().eval()
        self.network.load_state_dict(torch.load(Path(run.bundle, "models", "model.pt"), weights_only=True))

    def answer(self, image: Path) -> np.ndarray:
        """Return ``Task.infer``'s answer for an image.

        Labels, numbers of objects, or probabilities.
        """
        found = self._task.infer(self.network, self._prepared(image), CPU)
        if isinstance(found, LabelMap):
            return found.values.numpy()
        return found.probabilities() if isinstance(found, ClassScores) else found.numbers

    @torch.no_grad()
    def maps(self, image: Path) -> np.ndarray:
        """Return the network's output on the working grid."""
        return self._task._windows(self.network, self._prepared(image)["image"], CPU).numpy()  # type: ignore[attr-defined]

    def _prepared(self, image: Path) -> Prepared:
        case = Case(image.name, image.name, image, 0, spacing=self._spacing)
        return self._task.inference_preparation().prepare(case)
