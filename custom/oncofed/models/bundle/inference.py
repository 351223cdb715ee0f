"""A bundle's ``inference.json``: a folder of images in, answers out.

It needs MONAI alone.
"""

from __future__ import annotations

import itertools

from oncofed.data.spec import DataSpec
from oncofed.models.bundle.answer import Answer, LabelledVoxels, NumberedObjects, OfSlide, targets_of
from oncofed.models.bundle.expressions import REFUSE, Config, literal, plain
from oncofed.models.bundle.networks import Exported
from oncofed.models.bundle.reading import Reading, reading
from oncofed.models.bundle.targets import IMPORTS, of_targets

_WEIGHTS = "$torch.load(os.path.join(@bundle_root, 'models', 'model.pt'), map_location=@device, weights_only=True)"
_FOUND = (
    "$@refuse('no image in dataset_dir whose name ends with one of ' + ', '.join(@suffixes)) if not @datalist else 0"
)
_ONE_NAME_EACH = (
    "$@refuse('two images of one name: their answers would be one file') if len(@datalist) > "
    "len({@name(case['image']) for case in @datalist}) else 0"
)
# A case of several files has the name of the first one.
_NAME = (
    "$lambda path: os.path.basename(path if isinstance(path, str) else path[0]).removesuffix('.gz').rpartition('.')[0]"
)
_LISTED = (
    "$[{'image': path} for path in sorted(glob.glob(os.path.join(glob.escape(@dataset_dir), '*'))) "
    "if path.lower().endswith(tuple(@suffixes))]"
)
_MIRRORED = (
    "$lambda image: torch.stack([torch.flip(@inferer(torch.flip(image[None], axes), @predictor), axes)[0] "
    "for axes in @mirrorings]).mean(0)"
)
_PREDICTED = (
    "$lambda case: {**case, 'pred': monai.data.MetaTensor(@infer(case['image'].as_tensor().to(@device)).float().cpu(), "
    "meta=case['image'].meta)}"
)
_SCIPY = "import scipy.ndimage as ndimage"
_PROBABILITIES = "torch.softmax(@predictor({}) / @temperature, -1)"
_LARGEST = (
    "$lambda labels, value: (lambda pieces: numpy.where((pieces > 0) & (pieces != 1 + "
    "numpy.argmax(numpy.bincount(pieces.ravel(), minlength=2)[1:])), 0, labels))(ndimage.label(labels == value)[0])"
)
_KEPT = (
    "$lambda pred: monai.utils.convert_to_dst_type(functools.reduce(@largest, @keep_largest, pred[0].numpy())[None], "
    "pred)[0]"
)
_IN_ORDER = (
    "$lambda pred: monai.utils.convert_to_dst_type(functools.reduce(lambda labels, region: "
    "numpy.where(region[0] > 0.5, region[1], labels), zip(pred.numpy(), @region_values), "
    "numpy.zeros(pred.shape[1:], dtype=numpy.float32))[None], pred)[0]"
)
# Seeds are where objects are deepest; a piece without one is a seed; each voxel belongs to the nearest.
_SEPARATED: Config = {
    "sown": "$lambda inside, depth: ndimage.label(inside & (ndimage.gaussian_filter(depth, 1.0) > @seed_depth))",
    "seedless": "$lambda inside, seeds: (lambda pieces: ndimage.label(inside & ~numpy.isin(pieces, "
    "pieces[seeds > 0]))[0])(ndimage.label(inside)[0])",
    "seeds": "$lambda inside, seeds, count: (lambda rest: numpy.where(rest > 0, rest + count, seeds))"
    "(@seedless(inside, seeds))",
    "grown": "$lambda inside, seeds: numpy.where(inside, seeds[tuple(ndimage.distance_transform_edt(seeds == 0, "
    "return_distances=False, return_indices=True))], 0)",
    "numbered": "$lambda grown: (lambda kept: (numpy.cumsum(kept) * kept)[grown])((numpy.bincount(grown.ravel()) >= "
    "@smallest) & (numpy.arange(grown.max() + 1) > 0))",
    "separate": "$lambda inside, depth: @numbered(@grown(inside, @seeds(inside, *@sown(inside, depth)))) "
    "if inside.any() else inside.astype(int)",
    "separated": "$lambda pred: monai.utils.convert_to_dst_type("
    "@separate(pred[0].numpy() > 0.5, pred[1].numpy())[None], pred)[0]",
}
_SAVED = (
    "$lambda case: nibabel.save(nibabel.Nifti1Image(case['pred'][0].numpy().astype('{kind}'), "
    "case['image'].meta['original_affine']), os.path.join(@output_dir, "
    "@name(case['image'].meta['filename_or_obj']) + '_seg{ending}'))"
)
_SAVED_FLAT = (
    "$lambda case: Image.fromarray(case['pred'][0].numpy().T.astype('{kind}')).save(os.path.join(@output_dir, "
    "@name(case['image'].meta['filename_or_obj']) + '_seg{ending}'))"
)
_BAG = (
    "$lambda path: (lambda bag: bag if bag.ndim == 2 and bag.shape[1] == @features and len(bag) else "
    "@refuse('not a bag of features: expected one row a tile'))"
    "(torch.from_numpy(numpy.load(path, allow_pickle=False)).float().to(@device))"
)
_WRITTEN = (
    "$pathlib.Path(@output_dir, 'predictions.json').write_text(json.dumps({'classes': @classes, "
    "'temperature': @temperature, 'probabilities': "
    "{os.path.basename(case['image']): [round(float(p), 9) for p in @probabilities(case)] for case in @datalist}}, "
    "indent=2))"
)


def inference(network: Exported, data: DataSpec, answer: Answer, classes: dict[int, str]) -> tuple[Config, list[str]]:
    """Return the configuration and the packages it needs.

    Packages in addition to MONAI.

    Args:
        network: of the bundle.
        data: grid and normalisation of its input.
        answer: form of the answer.
        classes: label values and names.
    """
    targets = targets_of(answer)
    if isinstance(answer, LabelledVoxels | NumberedObjects):
        read = reading(data, whole=False)
        answered, imports = _of_voxels(data, answer, read.moved, len(classes))
    else:
        outputs = "@predictor({})" if targets else _PROBABILITIES
        if isinstance(answer, OfSlide):
            read = Reading((".npy",), ["import numpy"], [])
            found = _of_bags(network.features, outputs)
        else:
            read = reading(data, whole=True)
            found = _of_images(outputs)
        answered, imports = (
            (found | of_targets(targets), IMPORTS) if targets else (_of_classes(found, classes), IMPORTS[1:])
        )
    imported = {"import glob", "import os", *network.imports, *imports, *read.imports}
    steps = {"preprocessing": {"_target_": "Compose", "transforms": read.steps}} if read.steps else {}
    config: Config = {
        "imports": [f"${line}" for line in sorted(imported)],
        "bundle_root": ".",
        "dataset_dir": "images",
        "output_dir": "$os.path.join(@bundle_root, 'eval')",
        "suffixes": list(read.suffixes),
        "datalist": _LISTED,
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "refuse": REFUSE,
        "name": _NAME,
        **network.definition,
        "network": "$@network_def.to(@device).eval()",
        "weights": _WEIGHTS,
        **network.predictor,
        **read.entries,
        **steps,
        **answered,
        "initialize": [
            _FOUND,
            _ONE_NAME_EACH,
            "$@network.load_state_dict(@weights)",
            "$os.makedirs(@output_dir, exist_ok=True)",
        ],
    }
    packages = [*read.packages, *(["scipy"] if _SCIPY in imports else [])]
    return config, packages


def _of_voxels(
    data: DataSpec, answer: LabelledVoxels | NumberedObjects, moved: bool, classes: int
) -> tuple[Config, list[str]]:
    axes = range(2, 2 + data.dimensions)
    groups = (itertools.combinations(axes, n) for n in range(data.dimensions + 1)) if answer.mirror else [[()]]
    config: Config = {
        "mirrorings": [list(axes) for group in groups for axes in group],
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(data.patch),
            "sw_batch_size": 4,
            "overlap": answer.overlap,
            "mode": "gaussian",
        },
        "infer": _MIRRORED,
        "predict": _PREDICTED,
    }
    back = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
    }
    steps: list[Config] = [back] if moved else []
    imports, kind = [], "uint8" if classes < 256 else "uint16"
    ending = ".nii.gz" if data.dimensions == 3 else ".png"
    if isinstance(answer, NumberedObjects):
        config |= {"seed_depth": answer.seed_depth, "smallest": answer.smallest, **_SEPARATED}
        config["maps"] = "$lambda pred: torch.cat([torch.softmax(pred[:2], 0)[1:], pred[2:]])"
        steps = [_of_prediction("@maps"), *steps, _of_prediction("@separated")]
        imports, kind = [_SCIPY], "int32"
        ending = ".nii.gz" if data.dimensions == 3 else ".tif"
    else:
        # Resampling needs probabilities; without it the largest logit is the largest probability too.
        kind_of_output = "sigmoid" if answer.regions else "softmax"
        likely = {"_target_": "Activationsd", "keys": "pred", kind_of_output: True}
        decided = {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
        if answer.regions:
            literal(answer.regions)
            config |= {"region_values": list(answer.regions), "in_order": _IN_ORDER}
            decided, imports = _of_prediction("@in_order"), ["import functools"]
        steps = [*([likely] if data.spacing or answer.regions else []), *steps, decided]
        if answer.keep_largest:
            literal(answer.keep_largest)
            config |= {"keep_largest": list(answer.keep_largest), "largest": _LARGEST, "kept": _KEPT}
            steps.append(_of_prediction("@kept"))
            imports = ["import functools", _SCIPY]
    config["postprocessing"] = {"_target_": "Compose", "transforms": steps}
    config["save"] = (_SAVED if data.dimensions == 3 else _SAVED_FLAT).format(kind=kind, ending=ending)
    parts = ["@preprocessing", "@predict", "@postprocessing", "@save"]
    config["pipeline"] = {"_target_": "Compose", "transforms": parts}
    config["run"] = ["$torch.no_grad()(lambda: [@pipeline(case) for case in @datalist])()"]
    return config, imports


def _of_prediction(function: str) -> Config:
    return {"_target_": "Lambdad", "keys": "pred", "func": function}


def _of_images(outputs: str) -> Config:
    return {
        "inferer": {"_target_": "SimpleInferer"},
        "infer": f"$torch.no_grad()(lambda image: {outputs.format('image[None].to(@device)')}[0])",
        "outputs": "$lambda case: @infer(@preprocessing(case)['image'].as_tensor())",
    }


def _of_bags(features: int, outputs: str) -> Config:
    return {
        "inferer": {"_target_": "SimpleInferer"},
        "features": features,
        "preprocessing": _BAG,
        "infer": f"$torch.no_grad()(lambda bag: {outputs.format('bag')})",
        "outputs": "$lambda case: @infer(@preprocessing(case['image']))",
    }


def _of_classes(found: Config, classes: dict[int, str]) -> Config:
    """Return the entries that write each case's probabilities, which ``outputs`` gives."""
    probabilities = found.pop("outputs")
    names = [plain(name) for name in classes.values()]
    return {**found, "temperature": 1.0, "classes": names, "probabilities": probabilities, "run": [_WRITTEN]}
