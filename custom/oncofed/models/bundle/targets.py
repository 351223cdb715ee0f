"""A bundle's named targets: from outputs to what is told, as expressions and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from oncofed.models.answers import Step, TargetAnswer
from oncofed.models.answers import in_words as asked
from oncofed.models.bundle.expressions import Config, plain

# As ``models.answers`` has them, of (values,) in double precision.
_OPERATIONS = {
    "softmax": "$lambda values, step: torch.softmax(values, -1)",
    "sigmoid": "$lambda values, step: torch.sigmoid(values)",
    "exp": "$lambda values, step: torch.exp(values)",
    "softplus": "$lambda values, step: torch.nn.functional.softplus(values)",
    "cumulative_sum": "$lambda values, step: torch.cumsum(values, -1)",
    "cumulative_product": "$lambda values, step: torch.cumprod(values, -1)",
    "clip": "$lambda values, step: values.clamp(*step['bounds'])",
    "affine": "$lambda values, step: values * values.new_tensor(step['scale']) + values.new_tensor(step['offset'])",
    "linear": "$lambda values, step: values.matmul(values.new_tensor(step['matrix'])) "
    "+ values.new_tensor(step['offset'])",
}
_STEP = (
    "$lambda values, step: (lambda first, last: torch.cat([values[:first], @operations[step['operation']]"
    "(values[first:last], step), values[last:]]))(step['first'], step['last'] or len(values))"
)
_VALUES = "$lambda outputs, target: functools.reduce(@step, target['steps'], outputs)"
_VERDICTS = {
    "largest": "$lambda values, verdict: verdict['names'][int(values[:len(verdict['names'])].argmax())].strip()",
    "at_least": "$lambda values, verdict: ', '.join(name.strip() for name, value, threshold in zip(verdict['names'], "
    "values.tolist(), verdict['thresholds']) if value >= threshold)",
    "median": "$lambda values, verdict: verdict['names'][sum(sum(values.tolist()[number:]) > 0.5 for number in "
    "range(1, len(verdict['names'])))].strip()",
}
_TOLD = (
    "$lambda values, target: {**({'answer': @verdicts[target['verdict']['rule']](values, target['verdict'])} "
    "if target['verdict'] else {}), **{told['name']: round(told['scale'] * float(values[told['value']]) "
    "+ told['offset'], 9) for told in target['told']}}"
)
_ANSWERS = (
    "$lambda outputs: {target['name']: @tell(@values(part, target), target) for target, part in zip(@targets, "
    "torch.split(outputs.double().cpu(), [target['outputs'] for target in @targets]))}"
)
_WRITTEN = (
    "$pathlib.Path(@output_dir, 'predictions.json').write_text(json.dumps({'targets': {target['name']: "
    "{'kind': target['kind'], 'units': {told['name']: told['unit'] for told in target['told']}} for target in "
    "@targets}, 'answers': {os.path.basename(case['image'] if isinstance(case['image'], str) else case['image'][0]): "
    "@answers(@outputs(case)) for case in @datalist}}, indent=2))"
)
IMPORTS = ["import functools", "import json", "import pathlib"]


def of_targets(targets: Sequence[TargetAnswer]) -> Config:
    """Return the entries that tell the targets, from an entry ``outputs`` of a case."""
    return {
        "targets": [_escaped(target.plain()) for target in targets],
        "operations": dict(_OPERATIONS),
        "step": _STEP,
        "values": _VALUES,
        "verdicts": dict(_VERDICTS),
        "tell": _TOLD,
        "answers": _ANSWERS,
        "run": [_WRITTEN],
    }


def use_thresholds(config: Config, thresholds: Mapping[str, Mapping[str, float]]) -> None:
    """Let a bundle's targets say their findings from other probabilities on.

    Args:
        config: its ``inference.json``; one without targets stays.
        thresholds: target -> finding -> probability.
    """
    for target in config.get("targets", ()):
        known = {plain(name): value for name, value in thresholds.get(target["name"], {}).items()}
        verdict = target["verdict"]
        if known and verdict:
            named = zip(verdict["names"], verdict["thresholds"], strict=True)
            verdict["thresholds"] = [known.get(name, usual) for name, usual in named]


def use_temperatures(config: Config, temperatures: Mapping[str, Mapping[str, float]]) -> None:
    """Let a bundle's targets divide their logits; see ``use_thresholds``.

    Args:
        config: its ``inference.json``; one without targets stays.
        temperatures: target -> finding, or "" of a class -> temperature.
    """
    for target in config.get("targets", ()):
        known = {plain(name): value for name, value in temperatures.get(target["name"], {}).items()}
        if not known or not target["verdict"]:
            continue
        names = [""] if "" in known else target["verdict"]["names"]
        step = _escaped(asdict(Step("affine", scale=tuple(1 / known.get(name, 1.0) for name in names))))
        # Of a model that was read with its calibration the first step is one already.
        rest = target["steps"][1:] if target["steps"][0]["operation"] == "affine" else target["steps"]
        target["steps"] = [step, *rest]


def described(targets: Sequence[TargetAnswer]) -> Config:
    """Return what each number is, for ``metadata.json``."""
    found: Config = {}
    first = 0
    for target in targets:
        last = first + target.outputs
        numbers = {told.name: {"title": told.title, "unit": told.unit} for told in target.told}
        steps = [_escaped(step) for step in target.plain()["steps"]]
        found[plain(target.name)] = _escaped(
            {"kind": target.kind, "outputs": [first, last], "steps": steps, "numbers": numbers}
        )
        first = last
    return found


def output_names(targets: Sequence[TargetAnswer]) -> list[str]:
    """Return a name for each of the network's outputs."""
    return [f"{target.name}, output {number + 1}" for target in targets for number in range(target.outputs)]


def in_words(targets: Sequence[TargetAnswer]) -> str:
    """Return a list of what each number is, in Markdown."""
    lines = []
    for target in targets:
        said = f": `answer` is {asked(target)}" if target.verdict else ""
        lines.append(f"- `{target.name}` ({target.kind}){said}")
        lines += [f"  - `{told.name}`: {told.title}{f', in {told.unit}' if told.unit else ''}" for told in target.told]
    return "\n".join(lines)


def _escaped(value: Any) -> Any:
    """Return JSON values in which no text is an expression of MONAI's parser."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key): _escaped(part) for key, part in value.items()}
    return [_escaped(part) for part in value] if isinstance(value, list | tuple) else value
