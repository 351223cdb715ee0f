"""``oncofed job pack``."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from oncofed.cli.common import plain_console
from oncofed.errors import SpecError

if TYPE_CHECKING:
    from oncofed.packs.pack import Pack


def pack(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A Python package that registers networks, tasks, transforms or losses; or a MONAI bundle with code."
        ),
    ],
    kit: Annotated[
        Path | None,
        typer.Option("--kit", envvar="ONCOFED_KIT", help="Your startup kit, to sign with; sites run signed code only."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; by default code/ in the workspace.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")] = False,
) -> None:
    """Pack your own code for a job: a site runs it once its admin has approved exactly this digest.

    Of a MONAI bundle the configuration and scripts are packed; weights are written next to the pack as safetensors.
    """
    from oncofed.job.spec import packs_folder
    from oncofed.models.known import networks_of_pack
    from oncofed.packs.bundles import is_bundle, make_bundle_pack
    from oncofed.packs.extensions import extensions_of
    from oncofed.packs.findings import findings_of, imports_of
    from oncofed.packs.load import load_pack
    from oncofed.packs.pack import PACK_SUFFIX, make_pack

    bundle = is_bundle(folder)
    made = (make_bundle_pack if bundle else make_pack)(folder, kit / "startup" if kit else None)
    load_pack(made)
    brought = {"networks": [network.name for network in networks_of_pack(made.digest)], **extensions_of(made.digest)}
    if not any(brought.values()):
        raise SpecError(
            f"{folder} registers no network, task, transform or loss: decorate a function with register_network of "
            "oncofed.models, a class with register_task of oncofed.tasks, or a function with register_transform or "
            "register_loss of oncofed.packs.extensions"
        )
    target = (out or packs_folder()) / f"{made.name}-{made.digest[:12]}{PACK_SUFFIX}"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(made.content)
    weights = _write_weights(folder, target) if bundle else None
    findings = findings_of(made)
    if json:
        values = {"digest": made.digest, "file": str(target), **brought, "signed": bool(kit)}
        values |= {"weights": str(weights)} if weights else {}
        typer.echo(jsonlib.dumps({**values, "findings": len(findings)}))
        return
    console = plain_console()
    console.print(
        f"{target}: {len(made.files)} files, imports {', '.join(imports_of(made)) or 'nothing'}", markup=False
    )
    for finding in findings:
        console.print(f"  a reviewer will ask about {finding.file}:{finding.line} ({finding.what})", markup=False)
    if not kit:
        console.print("It is not signed: it runs on this machine, and at no site. Sign it with --kit.")
    console.print("\n  ".join(["In job.yaml:", *_lines_for(made, brought, bundle)]), markup=False)
    if weights:
        console.print(f"Its weights: --model {weights}", markup=False)


def _write_weights(bundle: Path, pack: Path) -> Path | None:
    """Write a bundle's weights next to its pack.

    Returns the file; None without weights.
    """
    from safetensors.torch import save_file

    from oncofed.models.foreign import bundle_weights
    from oncofed.packs.pack import PACK_SUFFIX

    weights = bundle_weights(bundle)
    if weights is None:
        return None
    target = pack.with_name(f"{pack.name.removesuffix(PACK_SUFFIX)}.safetensors")
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, target)
    return target


def _lines_for(pack: Pack, brought: dict[str, list[str]], bundle: bool) -> list[str]:
    """Return the lines of a job.yaml that uses a pack."""
    from oncofed.packs.bundles import input_of

    lines = ["model:", *(f"  network: {name}" for name in brought["networks"][:1]), f"  code: {pack.digest}"]
    lines += ["task:", "  type: pack", f"  name: {brought['tasks'][0]}"] if brought["tasks"] else []
    if brought["transforms"] or brought["losses"]:
        lines.append("training:")
        lines += [f"  transforms: [{', '.join(brought['transforms'])}]"] if brought["transforms"] else []
        lines += [f"  loss: {brought['losses'][0]}"] if brought["losses"] else []
    found = input_of(pack) if bundle else {}
    return [*lines, *(["data:"] if found else []), *(f"  {name}: {jsonlib.dumps(v)}" for name, v in found.items())]
