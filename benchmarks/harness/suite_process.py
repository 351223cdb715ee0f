"""Process of a suite, sending figures as JSON lines."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from oncofed.devices import training_device
from oncofed.processes import enable_interrupts, end_with_parent

from .bench import Bench
from .limits import Limits
from .results import Figure


def main() -> None:
    """Run the suite of the request in the first argument."""
    end_with_parent()
    enable_interrupts()
    request = json.loads(sys.argv[1])
    folder = Path(request["folder"])
    script = Path(request["suite"])
    warnings.filterwarnings("ignore")
    logging.getLogger("monai").setLevel(logging.ERROR)
    device = training_device(request["device"])
    work = folder / "work"
    work.mkdir()
    with (folder / "messages.jsonl").open("a", encoding="utf-8", buffering=1) as messages:

        def send(**message: Any) -> None:
            messages.write(json.dumps(message) + "\n")

        def keep(figure: Figure) -> None:
            send(figure=figure.model_dump(exclude_defaults=True))

        limits = Limits(device, folder, request["limits"], lambda name, value: send(limit=name, value=value))
        bench = Bench(
            folder=work,
            device=device,
            quick=request["quick"],
            limits=limits,
            keep=keep,
            doing=lambda what: send(doing=what),
            repeats=request["repeats"],
            first_use=request["first_use"],
            profile_to=Path(request["profile_to"]) if request["profile_to"] else None,
        )
        load_suite(script).run(bench)


def load_suite(script: Path) -> ModuleType:
    """Import a suite.

    Shared code is in ``lab/``, generators of images in ``tests/``.
    """
    for folder in (script.parent.parent / "tests", script.parent / "lab", script.parent):
        sys.path.insert(0, str(folder))
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module  # processes that it starts look up its functions there
    spec.loader.exec_module(module)
    return module
