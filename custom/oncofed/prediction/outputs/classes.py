"""Writes class probabilities and saliency maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from oncofed.data.case import Case
from oncofed.data.images import LoadedImage
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import load_whole
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.heatmap import overlay_heatmap, to_rgb
from oncofed.prediction.outputs.records import json_text
from oncofed.prediction.outputs.saliency import Explainer, SaliencyMap, resample_heat

# One explainer per network, since finding its feature layer takes time.
_EXPLAINERS: WeakKeyDictionary[nn.Module, Explainer] = WeakKeyDictionary()


def class_record(probabilities: Mapping[str, float], calibrated: bool) -> dict[str, Any]:
    """Return a classification as one table row.

    Args:
        probabilities: class -> probability, in the order of the label values, from 0.
        calibrated: whether a temperature was learned.
    """
    name = max(probabilities, key=lambda name: probabilities[name])
    found = {"value": list(probabilities).index(name), "name": name, "probability": probabilities[name]}
    return {**found, **{f"probability.{n}": p for n, p in probabilities.items()}, "calibrated": calibrated}


def class_rows(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per classified case.

    Args:
        records: contents of ``case.json``.
    """
    rows = []
    for record in records:
        shares = {row["name"]: row["probability"] for row in record["figures"] if "probability" in row}
        if shares:
            calibrated = any(row.get("calibrated") for row in record["figures"])
            rows.append({"case": record["name"], **class_record(shares, calibrated)})
    return rows


def write_classes(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write ``NAME_classes.json``."""
    assert prediction.probabilities is not None
    shares = dict(zip(model.task.classes.values(), prediction.probabilities.tolist(), strict=True))
    record = {"case": prediction.source.name, "model": model.digest}
    record |= class_record(shares, prediction.temperature is not None)
    path = folder / f"{prediction.source.name}_classes.json"
    path.write_text(json_text({**record, "temperature": prediction.temperature}), encoding="utf-8")
    return [path]


def write_saliency(prediction: CasePrediction, model: TrainedModel, folder: Path) -> list[Path]:
    """Write which image regions support the predicted class.

    ``NAME_evidence.png`` shows the map over the image; of a volume, ``NAME_evidence.nii.gz`` holds the map on the
    volume's own grid. ``NAME_evidence.json`` names the method.
    """
    assert prediction.probabilities is not None
    network = prediction.network or model.network(torch.device("cpu"))
    explainer = _EXPLAINERS.get(network) or _EXPLAINERS.setdefault(network, Explainer(network))
    name, value = prediction.source.name, int(prediction.probabilities.argmax())
    image = prediction.source.case.read_image()
    evidence = saliency_map(explainer, prediction.source.case, image, model.job.data, value)
    if image.dimensions == 2:
        path = folder / f"{name}_evidence.png"
        Image.fromarray(overlay_heatmap(to_rgb(image.values), evidence.heat.T)).save(path)
    else:
        path = folder / f"{name}_evidence.nii.gz"
        write_heat_volume(evidence.heat, image.affine, path)
    record = {"case": name, "model": model.digest, "value": value, "name": model.task.classes[value]}
    record["method"] = evidence.method
    record_path = folder / f"{name}_evidence.json"
    record_path.write_text(json_text(record), encoding="utf-8")
    return [path, record_path]


def saliency_map(explainer: Explainer, case: Case, image: LoadedImage, data: DataSpec, value: int) -> SaliencyMap:
    """Return a class's saliency map on the image's own grid.

    Args:
        explainer: of the network.
        case: the case.
        image: its image, as read.
        data: the job's data settings, for preprocessing.
        value: label value of the class.
    """
    network_input = load_whole(data)(case)["image"]
    found = explainer.explain(network_input.as_tensor(), value)
    heat = resample_heat(found.heat, network_input.affine.cpu().numpy(), image.affine, image.shape)
    return SaliencyMap(heat, found.method)


def write_heat_volume(heat: NDArray[np.float32], affine: NDArray[np.float64], path: Path) -> None:
    """Write a saliency map of a volume as NIfTI.

    Args:
        heat: (x, y, z).
        affine: (4, 4), from voxels to RAS+ in mm.
        path: of the file.
    """
    volume = nib.Nifti1Image(heat.astype(np.float32), affine)
    volume.header.set_xyzt_units("mm")
    nib.save(volume, path)
