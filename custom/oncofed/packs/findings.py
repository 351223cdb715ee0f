"""Findings for a pack's reviewer.

They show what is written openly; they prove nothing.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from oncofed.packs.pack import Pack

_NETWORK = frozenset(
    {"socket", "ssl", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "asyncio"}
)
_NETWORK |= {"xmlrpc", "socketserver", "paramiko", "websockets", "grpc", "zmq", "urllib3", "telnetlib", "nvflare"}
_PROCESS = frozenset({"subprocess", "multiprocessing", "pty", "concurrent", "signal", "ctypes", "cffi"})
_FILES = frozenset({"shutil", "tempfile", "glob", "pathlib", "io", "mmap", "sqlite3", "nibabel", "pydicom", "PIL"})
_PICKLE = frozenset({"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"})
_HIDDEN = frozenset({"importlib", "builtins", "sys", "gc", "inspect", "code", "codeop", "runpy"})
_MODULES = {
    "network": _NETWORK,
    "other processes": _PROCESS,
    "files": _FILES,
    "pickle": _PICKLE,
    "hidden ways": _HIDDEN | {"os"},
}
_CONFIGS = "configs/"
_EXPRESSION = re.compile(r"""(?:^|[\s:\[{,"'])\$[^\s"']""")
_TARGET = re.compile(r"""_target_["']?\s*:\s*["']?([\w.$@%#]+)""")
_CALLS = {
    "eval": "eval",
    "exec": "eval",
    "compile": "eval",
    "__import__": "hidden ways",
    "getattr": "hidden ways",
    "setattr": "hidden ways",
    "globals": "hidden ways",
    "vars": "hidden ways",
    "open": "files",
    "input": "hidden ways",
}
# Methods of any object with which torch, numpy and pandas read and write.
_METHODS = {
    "system": "other processes",
    "popen": "other processes",
    "fork": "other processes",
    "read_text": "files",
    "read_bytes": "files",
    "write_text": "files",
    "write_bytes": "files",
    "unlink": "files",
    "tofile": "files",
    "fromfile": "files",
    "memmap": "files",
    "save": "files",
    "load": "pickle",
    "load_state_dict_from_url": "network",
    "download_url": "network",
}


@dataclass(frozen=True)
class Finding:
    """Something to look at.

    Attributes:
        file: of the pack.
        line: in it, from 1.
        what: it is about: network, other processes, files, pickle, eval, hidden ways, unreadable; of a MONAI bundle's
            configuration also classes, which are those that are not MONAI's.
        text: the line.
    """

    file: str
    line: int
    what: str
    text: str


def findings_of(pack: Pack) -> list[Finding]:
    """Return findings for the reviewer."""
    found: list[Finding] = []
    for path in sorted(pack.files):
        if path.endswith(".py"):
            found += _of_file(pack, path)
        elif path.startswith(_CONFIGS):
            found += _of_config(pack, path)
    return found


def imports_of(pack: Pack) -> list[str]:
    """Return the modules from outside that a pack imports."""
    found: set[str] = set()
    for path in pack.files:
        if path.endswith(".py") and (tree := _parsed(pack, path)):
            for node in ast.walk(tree):
                found |= set(_imported(node))
    return sorted(found)


def difference(old: Pack | None, new: Pack) -> str:
    """Return the unified difference of two packs.

    All of the new one without an old one.
    """
    lines: list[str] = []
    for path in sorted({*(old.files if old else ()), *new.files}):
        before = old.text(path).splitlines() if old and path in old.files else []
        after = new.text(path).splitlines() if path in new.files else []
        lines += difflib.unified_diff(before, after, f"a/{path}", f"b/{path}", lineterm="")
    return "\n".join(lines)


def _of_file(pack: Pack, path: str) -> Iterator[Finding]:
    lines = pack.text(path).splitlines()
    tree = _parsed(pack, path)
    if tree is None:
        yield Finding(path, 1, "unreadable", "it is no Python that can be read")
        return
    for node in sorted(ast.walk(tree), key=lambda node: getattr(node, "lineno", 0)):
        for what in dict.fromkeys(_about(node)):
            line = getattr(node, "lineno", 1)
            yield Finding(path, line, what, lines[line - 1].strip()[:160] if line <= len(lines) else "")


def _of_config(pack: Pack, path: str) -> Iterator[Finding]:
    """Find expressions and foreign classes in a bundle's configuration."""
    for number, line in enumerate(pack.text(path).splitlines(), 1):
        target = _TARGET.search(line)
        if _EXPRESSION.search(line):
            yield Finding(path, number, "eval", line.strip()[:160])
        elif target and "." in target[1] and not target[1].startswith("monai."):
            yield Finding(path, number, "classes", line.strip()[:160])


def _about(node: ast.AST) -> Iterator[str]:
    for module in _imported(node):
        for what, modules in _MODULES.items():
            if module.partition(".")[0] in modules:
                yield what
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Name) and function.id in _CALLS:
            yield _CALLS[function.id]
        if isinstance(function, ast.Attribute) and function.attr in _METHODS:
            yield _METHODS[function.attr]
    if isinstance(node, ast.Attribute) and node.attr.startswith("__") and node.attr not in {"__init__", "__name__"}:
        yield "hidden ways"


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
        yield node.module


def _parsed(pack: Pack, path: str) -> ast.Module | None:
    try:
        return ast.parse(pack.text(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
