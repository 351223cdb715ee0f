"""nnU-Net's own planning, training and prediction, by its own code.

It runs in an environment of its own (``nnunet_baseline``), and takes one file of settings. What differs from
``nnUNetv2_train``: a number of steps in place of 1,000 epochs, with nnU-Net's schedule over them; and no validation,
pictures and checkpoints in between, which its seconds would include.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

_CONFIGURATION = "3d_fullres"
# The learning rate changes by epochs: as many as a training of nnU-Net's own length would have tell apart.
_MOST_EPOCHS = 100


class Trainer(nnUNetTrainer):
    """nnU-Net's trainer for a number of steps."""

    steps = 0

    def run_training(self) -> dict[str, float]:
        """Train; return the seconds of all steps with their batches, and this process's own."""
        self.num_epochs = min(_MOST_EPOCHS, self.steps)
        self.disable_checkpointing = True
        self.on_train_start()
        # It was made for the number of epochs that nnU-Net has by default.
        self.optimizer, self.lr_scheduler = self.configure_optimizers()
        begun, own = time.perf_counter(), time.process_time()
        for epoch in range(self.num_epochs):
            self.current_epoch = epoch
            self.on_train_epoch_start()
            taken, upto = ((number * self.steps) // self.num_epochs for number in (epoch, epoch + 1))
            losses = [self.train_step(next(self.dataloader_train))["loss"] for _ in range(taken, upto)]
            print(f"step {upto}, loss {np.mean(losses):.4f}", flush=True)
        return {"seconds": time.perf_counter() - begun, "processor": time.process_time() - own}


def plan(settings: dict[str, Any]) -> None:
    """Let nnU-Net plan, change what the settings change, and preprocess.

    Args:
        settings: ``number`` of the dataset, ``plans`` (its file), ``narrower`` (by which feature maps are divided),
            ``batch`` (None: nnU-Net's own).
    """
    number = [int(settings["number"])]
    extract_fingerprints(number, num_processes=1)
    plan_experiments(number)
    path = Path(settings["plans"])
    plans = json.loads(path.read_text(encoding="utf-8"))
    chosen = plans["configurations"][_CONFIGURATION]
    network = chosen["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [maps // settings["narrower"] for maps in network["features_per_stage"]]
    chosen["batch_size"] = settings["batch"] or chosen["batch_size"]
    path.write_text(json.dumps(plans), encoding="utf-8")
    preprocess(number, configurations=[_CONFIGURATION], num_processes=[1])


def train(settings: dict[str, Any]) -> dict[str, float]:
    """Train, and write predictions of held-out cases; return its seconds.

    Args:
        settings: ``plans`` and ``dataset`` (files), ``steps``, ``seed``, ``device``, ``images`` (files) and ``out``
            (folder of the predictions).
    """
    seed = int(settings["seed"])
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 # nnU-Net draws from it
    torch.manual_seed(seed)
    plans, dataset = (json.loads(Path(settings[name]).read_text(encoding="utf-8")) for name in ("plans", "dataset"))
    plans["continue_training"] = False
    device = torch.device(settings["device"])
    trainer = Trainer(plans, _CONFIGURATION, "all", dataset, device)
    trainer.steps = int(settings["steps"])
    trainer.initialize()
    found = trainer.run_training()
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=True, device=device, allow_tqdm=False
    )
    if device.type == "cpu":
        predictor.perform_everything_on_device = False
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        dataset,
        "Trainer",
        trainer.inference_allowed_mirroring_axes,
    )
    out = Path(settings["out"])
    out.mkdir(parents=True)
    images = [[path] for path in settings["images"]]
    names = [str(out / Path(path).name.removesuffix("_0000.nii.gz")) for (path,) in images]
    predictor.predict_from_files_sequential(images, names)
    return found


def main() -> None:
    """Do what the file of settings asks for."""
    settings = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if settings["do"] == "plan":
        plan(settings)
    else:
        found = train(settings)
        Path(settings["out"], "training.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
