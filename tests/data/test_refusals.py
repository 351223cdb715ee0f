"""Refusals say what was found and what to do.

They do not pass on a library's last error.

One test reads every message in the syntax of ``oncofed.data``; another registers broken files of every format.
"""

from __future__ import annotations

import ast
import gzip
import re
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import oncofed.data
from dicoms import make_series
from oncofed.data.files import FILES_TABLE
from oncofed.data.manifest import MANIFEST_FILE, Manifest, read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError

_ROOT = Path(oncofed.data.__file__).parent
_ERRORS = {"DataError", "SpecError", "UnreadableError"}
# Words that state what was expected, or what to do.
_HELPS = re.compile(
    r"\bexpected\b|\bsuch as\b|\bneeds\b|\bneeded\b|pip install|\bknown are\b|--\w+|"
    r"(^|[.;:,(`] ?|\b(or|and|then|to) )(add|ask|bring|copy|convert|correct|export|extract|fetch|give|install|leave|"
    r"make|mend|name|open|put|register|remove|rename|repair|run|save|say|see|split|use|write)\b",
    re.IGNORECASE,
)
# Names of messages that are written, and held to the rules, elsewhere in the package.
_WRITTEN_ELSEWHERE = re.compile(
    r"reason|problem|fault|listed|_explain|_nothing_found|_why|^expected_columns$|"
    r"^BROKE_ITS_READER$|^DAMAGED$|^NO_OUTLINES$"
)
_RETURNS_REASONS = re.compile(r"reason_of|^_why|_problem$|fault|^expected_columns$")
# Functions that modules share -> number of their argument that is a reason.
_TAKE_REASONS = {"refused": 1, "unreadable": 2}
_CONSTANTS = {"BROKE_ITS_READER", "DAMAGED", "NO_OUTLINES"}
# Of an exception only this is passed on: where in a text it is, and the system's own words and numbers.
_PLAIN_FACTS = {"strerror", "errno", "lineno", "colno", "code", "filename", "__cause__", "reason"}


# --- reading the package


def _modules() -> list[Path]:
    return [path.relative_to(_ROOT) for path in sorted(_ROOT.rglob("*.py"))]


class _Message:
    """One refusal in a module.

    Its line and the expression of its text. ``refuses`` is false if a file is only left out: then it is enough to state
    what it is.
    """

    def __init__(self, text: ast.expr, function: ast.FunctionDef | None, refuses: bool = True) -> None:
        self.line, self.text, self.function, self.refuses = text.lineno, text, function, refuses

    def parts(self) -> Iterator[ast.AST]:
        """Yield the text's nodes, with values of local variables."""
        known = _assigned(self.function) if self.function else {}
        pending: list[ast.AST] = [self.text]
        seen: set[str] = set()
        while pending:
            for node in ast.walk(pending.pop()):
                yield node
                if isinstance(node, ast.Name) and node.id in known and node.id not in seen:
                    seen.add(node.id)
                    pending += known[node.id]

    def words(self) -> str:
        """Return all that the text says by itself."""
        return " ".join(n.value for n in self.parts() if isinstance(n, ast.Constant) and isinstance(n.value, str))


def _assigned(function: ast.FunctionDef) -> dict[str, list[ast.AST]]:
    """Return local variable -> values assigned or appended to it."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(function):
        targets: list[ast.expr] = []
        values: list[ast.AST] = []
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            targets, values = (node.targets if isinstance(node, ast.Assign) else [node.target]), [node.value]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            targets, values = [node.func.value], list(node.args)
        for target in targets:
            if isinstance(target, ast.Name):
                found.setdefault(target.id, []).extend(values)
    return found


def _messages(tree: ast.Module) -> Iterator[_Message]:
    """Yield errors, and reasons for setting aside or leaving out.

    Where a function of the module writes the whole of it, each text that the function returns stands for it.
    """
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for message in _given(tree):
        written = message.text
        known = _assigned(message.function) if message.function else {}
        if isinstance(written, ast.Name) and len(known.get(written.id, ())) == 1:
            (written,) = known[written.id]
        by = functions.get(_called(written)) if isinstance(written, ast.Call) else None
        returned = [node.value for node in ast.walk(by) if isinstance(node, ast.Return)] if by else []
        texts = [text for text in returned if text is not None and not _is_no_text(text)]
        yield from (_Message(text, by, message.refuses) for text in texts) if texts else (message,)


def _given(tree: ast.Module) -> Iterator[_Message]:
    takes_reasons = _takes_reasons(tree) | _TAKE_REASONS
    for node, function in _with_function(tree, None):
        if isinstance(node, ast.Call):
            yield from _of_call(node, function, takes_reasons)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                is_reason = isinstance(key, ast.Constant) and key.value in {"reason", "label_problem"}
                if is_reason and not _is_constant(value, None):
                    yield _Message(value, function)
        elif isinstance(node, ast.Tuple) and any(_is_constant(part, "refused") for part in node.elts):
            yield _Message(node.elts[-1], function)
        elif isinstance(node, ast.Return) and function and _RETURNS_REASONS.search(function.name):
            if node.value is not None and not _is_no_text(node.value):
                # Why something failed stands in brackets in a message of its own.
                yield _Message(node.value, function, not function.name.startswith("_why"))
        elif isinstance(node, (ast.Assign, ast.AugAssign)):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            name = ast.unparse(target).partition("[")[0].rpartition(".")[2]
            if function is None and name in _CONSTANTS:
                yield _Message(node.value, None)
            elif name in {"left_out", "broken"}:
                yield from (_Message(text, function, name == "broken") for text in _texts_by_path(target, node.value))


def _of_call(node: ast.Call, function: ast.FunctionDef | None, takes_reasons: dict[str, int]) -> Iterator[_Message]:
    name = _called(node)
    if name in _ERRORS and node.args:
        yield _Message(node.args[0], function)
    elif name in {"set_aside", "leave_out"} and node.args:
        yield _Message(node.args[-1 if name == "set_aside" else 1], function, name == "set_aside")
    elif name in takes_reasons and len(node.args) > takes_reasons[name]:
        yield _Message(node.args[takes_reasons[name]], function)
    elif name == "append" and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "problems":
        yield _Message(node.args[0], function)
    for keyword in node.keywords:
        if name == "write":  # of the audit log: the reason comes from a person
            break
        if keyword.arg in {"reason", "problem"} and not _is_constant(keyword.value, None):
            yield _Message(keyword.value, function)


def _takes_reasons(tree: ast.Module) -> dict[str, int]:
    """Return function of a module -> position of its reason."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [arg.arg for arg in node.args.args if arg.arg != "self"]
            if reasons := {"reason", "problem"} & set(names):
                found[node.name] = names.index(min(reasons))
    return found


def _texts_by_path(target: ast.expr, value: ast.expr) -> Iterator[ast.expr]:
    """Yield reasons in assignments to path -> reason."""
    if isinstance(target, ast.Subscript):
        yield value
    elif isinstance(value, ast.Dict):
        yield from value.values
    elif isinstance(value, ast.DictComp):
        yield value.value
    elif isinstance(value, ast.Call) and _called(value) == "fromkeys":
        yield value.args[1]


def _with_function(node: ast.AST, function: ast.FunctionDef | None) -> Iterator[tuple[ast.AST, ast.FunctionDef | None]]:
    for child in ast.iter_child_nodes(node):
        within = child if isinstance(child, ast.FunctionDef) else function
        yield child, within
        yield from _with_function(child, within)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _is_no_text(node: ast.AST) -> bool:
    return ast.unparse(node) in {"None", "[]", "''"}


def _is_constant(node: ast.AST, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


def _names(node: ast.AST) -> set[str]:
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _foreign(function: ast.FunctionDef | None) -> set[str]:
    """Return names that may hold a library's error.

    Of caught errors and parameters; our errors are in words already.
    """
    found: set[str] = set()
    for node in ast.walk(function) if function else ():
        is_caught = isinstance(node, ast.ExceptHandler) and node.name and node.type is not None
        if is_caught and not _names(node.type) <= _ERRORS:
            found.add(node.name)
        kinds = _names(node.annotation) if isinstance(node, ast.arg) and node.annotation is not None else set()
        if any(kind.endswith(("Error", "Exception")) for kind in kinds - _ERRORS):
            found.add(node.arg)
    return found


def passed_on(message: _Message) -> list[str]:
    """Return parts that come from errors, types or objects."""
    foreign = _foreign(message.function)
    own = _handled_as_own(message.function)
    found = []
    for node in message.parts():
        if isinstance(node, ast.Attribute) and node.attr in {"__name__", "__qualname__", "__class__"}:
            found.append(f"line {message.line}: a type's name ({ast.unparse(node)})")
        if isinstance(node, ast.Call) and _called(node) in {"repr", "vars", "format_exc"}:
            found.append(f"line {message.line}: {ast.unparse(node)}")
        texts: list[ast.expr] = []
        if node in own:
            continue
        if isinstance(node, ast.Call) and _called(node) in {"str", "_in_short"}:
            texts = list(node.args)
        elif isinstance(node, ast.FormattedValue) or (
            isinstance(node, ast.Attribute) and node.attr not in _PLAIN_FACTS
        ):
            texts = [node.value]
        if any(isinstance(text, ast.Name) and text.id in foreign for text in texts):
            found.append(f"line {message.line}: an error's own text ({ast.unparse(node)})")
    return sorted(set(found))


def _handled_as_own(function: ast.FunctionDef | None) -> set[ast.AST]:
    """Return nodes reached only for our errors."""
    found: set[ast.AST] = set()
    for node in ast.walk(function) if function else ():
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            is_ours = _names(node.type) <= _ERRORS
        else:
            is_ours = isinstance(node, ast.If) and bool(_names(node.test) & _ERRORS)
        if is_ours:
            assert isinstance(node, (ast.ExceptHandler, ast.If))
            found |= {inner for statement in node.body for inner in ast.walk(statement)}
    return found


def helps(message: _Message) -> bool:
    """Return whether a message helps, or is written elsewhere.

    It helps if it says what was expected or what to do.
    """
    if not message.refuses or _HELPS.search(message.words()):
        return True
    names = [node.id for node in message.parts() if isinstance(node, ast.Name)]
    names += [node.attr for node in message.parts() if isinstance(node, ast.Attribute)]
    names += [ast.unparse(node.slice) for node in message.parts() if isinstance(node, ast.Subscript)]
    # A repeated error is one of ours: the other test refuses all others.
    return "error" in names or any(map(_WRITTEN_ELSEWHERE.search, names))


@cache
def _walked() -> list[tuple[Path, _Message]]:
    """Return the module and the message of each refusal."""
    return [
        (path, message)
        for path in _modules()
        for message in _messages(ast.parse((_ROOT / path).read_text(encoding="utf-8")))
    ]


@pytest.mark.wild("openslide#656", "a library's last error in place of a reason")
def test_no_message_contains_a_foreign_error_type_or_object() -> None:
    assert [f"{path}, {part}" for path, message in _walked() for part in passed_on(message)] == []


def test_every_message_says_what_was_expected_or_what_to_do() -> None:
    unhelpful = [(path, message) for path, message in _walked() if not helps(message)]
    assert [f"{path}, line {message.line}: {ast.unparse(message.text)}" for path, message in unhelpful] == []


def test_the_search_finds_known_examples() -> None:
    module = ast.parse("""
def one(path):
    try:
        read(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Copy it again.") from None

def two(error: Exception):
    if isinstance(error, DataError):
        return str(error)
    reason = str(error).splitlines()[0]
    return {"kind": "broken", "reason": f"cannot be read ({reason})"}

def three(value):
    raise DataError(f"found {type(value).__name__}, expected a number")

def four(path):
    try:
        read(path)
    except DataError as error:
        raise DataError(f"its image {error}") from None
    except OSError as error:
        files.leave_out(path, f"cannot be read ({error.strerror}). Copy it again")

def five(slide):
    raise DataError("is no slide")

def six(path):
    reasons = []
    try:
        read(path)
    except ValueError as error:
        reasons.append(str(error))
    raise DataError(f"cannot be read ({reasons[-1]}). Copy it again")

def seven(heap, path):
    heap.left_out[path] = "localizer"
    heap.broken[path] = "no header"

def eight(group):
    return refused(group, "its slices differ")

def refused(group, reason):
    return Stack(group, reason=reason)

def _why(error: Exception):
    return str(error)
""")
    by_function: dict[str, list[_Message]] = {}
    for message in _messages(module):
        assert message.function is not None
        by_function.setdefault(message.function.name, []).append(message)
    passing = {name for name, several in by_function.items() if any(map(passed_on, several))}
    assert passing == {"one", "two", "three", "six", "_why"}
    helpless = {name for name, several in by_function.items() if not all(map(helps, several))}
    assert helpless - {"two"} == {"five", "seven", "eight"}


# --- registering broken files

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}")
_CLASS = re.compile(
    r"\b[A-Z]\w*(Error|Exception|Warning)\b|\bobject at\b|<class |\b(numpy|np|nibabel|pydicom|PIL|itk)\.\w"
)


def unfit(text: str, folder: Path) -> list[str]:
    """Return parts unfit for people.

    Addresses, paths of this machine, names of classes.
    """
    found = [match[0] for rule in (_ADDRESS, _CLASS) if (match := rule.search(text))]
    return [*found, *(word for word in ("Traceback", str(folder)) if word in text)]


def refusals(folder: Path, out: Path, task: str | None = None) -> list[str]:
    """Register a folder, and return all reasons given."""
    try:
        manifest: Manifest = register(RegisterOptions(folder, "broken", out, task=task, workers=1))  # type: ignore[arg-type]
    except DataError as error:
        return [str(error).replace(str(folder), "FOLDER")]
    table = (out / FILES_TABLE).read_text(encoding="utf-8")
    return [*(bad.reason for bad in manifest.quarantine), *manifest.left_out, table]


def _nifti(folder: Path) -> bytes:
    nib.save(nib.Nifti1Image(np.arange(6**3, dtype=np.int16).reshape(6, 6, 6), np.eye(4)), folder / "whole.nii")
    return (folder / "whole.nii").read_bytes()


def _png(folder: Path) -> bytes:
    Image.fromarray(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)).save(folder / "whole.png")
    return (folder / "whole.png").read_bytes()


def _jpeg(folder: Path) -> bytes:
    Image.fromarray(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32)).save(folder / "whole.jpg")
    return (folder / "whole.jpg").read_bytes()


def _tiff(folder: Path) -> bytes:
    pixels = np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3)
    tifffile.imwrite(folder / "whole.tif", pixels, tile=(32, 32), photometric="rgb", compression="deflate")
    return (folder / "whole.tif").read_bytes()


def _nrrd(folder: Path) -> bytes:
    del folder
    header = "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 6 6\n"
    header += "space directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: raw\nendian: little\n\n"
    return header.encode() + bytes(6**3 * 2)


def _mha(folder: Path) -> bytes:
    del folder
    header = "ObjectType = Image\nNDims = 3\nDimSize = 6 6 6\nElementSpacing = 1 1 1\nElementType = MET_SHORT\n"
    return (header + "ElementDataFile = LOCAL\n").encode() + bytes(6**3 * 2)


def _dicom(folder: Path) -> bytes:
    make_series(folder / "series")
    return next(path for path in sorted((folder / "series").rglob("*")) if path.is_file()).read_bytes()


_WHOLE = {
    "a.nii": _nifti,
    "a.nii.gz": _nifti,
    "a.png": _png,
    "a.jpg": _jpeg,
    "a.tif": _tiff,
    "a.nrrd": _nrrd,
    "a.mha": _mha,
    "a.dcm": _dicom,
    "a.svs": _tiff,
    "a.ndpi": _tiff,
}
# Messages of nibabel, Pillow, teem, ITK, zlib, tifffile, OpenSlide, pydicom and Python on broken files.
_LIBRARIES = re.compile(
    r"cannot identify image|decoder error|fread got|hit end of header|ImageIO|Binary block|data code \d|"
    r"Expected \d+ bytes|broken data stream|image file is truncated|Truncated File Read|cannot load this image|"
    r"File cannot be read|didn't see|Unsupported or missing image|Cannot hash|Invalid TIFF|Short read|not a TIFF|"
    r"Error -\d|incorrect header|unpack requires|invalid literal|codec can't decode|index out of range|NoneType"
)


def broken(whole: bytes, how: str) -> bytes:
    """Return a file's bytes after some damage."""
    if how == "empty":
        return b""
    if how == "cut":
        return whole[: len(whole) // 2]
    if how == "cut in its header":
        return whole[: min(60, len(whole) // 3)]
    if how == "another magic":
        return b"GARBAGE!" + whole[8:]
    if how == "a page of a web server":
        return b"<html><body>502 Bad Gateway</body></html>"
    if how == "zeros":
        return bytes(len(whole))
    if how == "larger than it is":  # the sides of NIfTI, else a number early in the file
        return whole[:40] + struct.pack("<8h", 3, 30_000, 30_000, 30_000, 1, 1, 1, 1) + whole[56:]
    if how == "changed in the middle":
        middle = len(whole) // 2
        return whole[:middle] + bytes(b ^ 0x55 for b in whole[middle : middle + 200]) + whole[middle + 200 :]
    raise AssertionError(how)


def _require_unused(out: Path, name: str, found: list[str]) -> None:
    """Require that a file is unused, and the reason given.

    The reason names it or its folder.
    """
    if not (out / MANIFEST_FILE).is_file():
        assert len(found) == 1
        assert "no image found" in found[0]
        return
    manifest = read_manifest(out)
    assert manifest.entries == []
    assert [bad.source for bad in manifest.quarantine if bad.reason] == [name]


@pytest.mark.wild("openslide#656", "what broken files of any format are refused for")
@pytest.mark.parametrize("name", _WHOLE)
@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "cut",
        "cut in its header",
        "another magic",
        "a page of a web server",
        "zeros",
        "larger than it is",
        "changed in the middle",
    ],
)
def test_a_broken_file_is_refused_in_words(tmp_path: Path, name: str, how: str) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "in").mkdir()
    content = broken(_WHOLE[name](tmp_path / "whole"), how)
    (tmp_path / "in" / name).write_bytes(gzip.compress(content) if name.endswith(".gz") and how != "empty" else content)
    found = refusals(tmp_path / "in", tmp_path / "set", "slides" if name.endswith((".svs", ".ndpi")) else None)
    if how in {"empty", "cut in its header", "a page of a web server", "zeros"}:
        _require_unused(tmp_path / "set", name, found)
    for text in found:
        assert not unfit(text, tmp_path), text
        assert not _LIBRARIES.search(text), text


_MAGIC = (
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"II*\0",
    b"NRRD0004\n",
    b"\x1f\x8b\x08",
    b"\x5c\x01\0\0",
    bytes(128) + b"DICM",
)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(sorted(_WHOLE)),
    start=st.sampled_from(_MAGIC),
    rest=st.binary(max_size=400),
)
def test_any_bytes_are_refused_in_words(
    tmp_path_factory: pytest.TempPathFactory, name: str, start: bytes, rest: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / "in").mkdir()
    (folder / "in" / name).write_bytes(start + rest)
    for text in refusals(folder / "in", folder / "set", "slides" if name.endswith((".svs", ".ndpi")) else None):
        assert not unfit(text, folder), text
