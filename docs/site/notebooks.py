"""Notebooks of ``docs/notebooks``: run by their kernel, and shown as pages."""

from __future__ import annotations

import base64
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

# Seconds that a kernel may take to start, and a cell to run: more than either takes on a busy machine.
_LONGEST = 600
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def executed(file: Path) -> nbformat.NotebookNode:
    """Return a notebook with its outputs, from an empty folder of its own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    with tempfile.TemporaryDirectory(prefix="oncofed-notebook-") as folder:
        # The kernel is this interpreter, with what it finds. What it and notebooks write lies in the folder, as do the
        # sockets by which it is reached: no port is opened.
        os.environ |= {"JUPYTER_RUNTIME_DIR": folder, "IPYTHONDIR": folder}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "TMPDIR": folder}
        sockets = Config({"ConnectionFileMixin": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        client = NotebookClient(book, timeout=_LONGEST, startup_timeout=_LONGEST, kernel_name="python3", config=sockets)
        client.execute(cwd=folder, env=environment)
    return book


def page_of(book: nbformat.NotebookNode, name: str) -> str:
    """Return an executed notebook as Markdown.

    Args:
        book: with its outputs.
        name: of the notebook's file, which the page links to.
    """
    parts = []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        parts += [shown for output in cell.outputs if (shown := _shown(output))]
    parts.insert(
        1, f"[The notebook]({name}), to run it yourself: `pip install notebook`, then `jupyter notebook {name}`."
    )
    return "\n\n".join(parts) + "\n"


def _shown(output: nbformat.NotebookNode) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        size = len(base64.b64decode(data["image/png"]))
        return f"![output, {size} bytes](data:image/png;base64,{data['image/png'].strip()})"
    text = output.get("text") or data.get("text/plain", "")
    text = _ANSI.sub("", text).rstrip()
    return f"```text\n{text}\n```" if text and output.get("name") != "stderr" else ""
