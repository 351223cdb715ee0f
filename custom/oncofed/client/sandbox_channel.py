"""Messages between a job's process and its sandboxed process.

They are JSON and tensors over a socket. This module imports the standard library only, and starts no thread: the
sandboxed process reads its first message before it gives up its files.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Mapping
from typing import Any

# Commands of the job's process.
BEGIN, PREPARE, TRAIN, VALIDATE, STOP = "begin", "prepare", "train", "validate", "stop"
# Events of the sandboxed process. From LOADS_CODE on, their text may come from the pack's code.
PROGRESS, NOTE, LOADS_CODE, DONE, FAILED = "progress", "note", "loads code", "done", "failed"
_LENGTH_BYTES = 16  # in front of each message: lengths of its JSON and of its tensors
_LARGEST_FACTS = 1 << 22


def send(to: socket.socket, facts: Mapping[str, Any], blob: bytes) -> None:
    """Send a message.

    Args:
        to: the other process.
        facts: what JSON can hold.
        blob: tensors as safetensors, or a pack's content.
    """
    text = json.dumps(facts).encode()
    to.sendall(len(text).to_bytes(8, "big") + len(blob).to_bytes(8, "big") + text)
    if blob:
        to.sendall(blob)


def receive(source: socket.socket, largest: int) -> tuple[dict[str, Any], bytes]:
    """Receive a message.

    Args:
        source: the other process, which may send anything.
        largest: bytes that its tensors may have.

    Raises:
        ValueError: it is larger, or malformed.
        EOFError: the other process has ended.
    """
    lengths = _read(source, _LENGTH_BYTES)
    text, blob = int.from_bytes(lengths[:8], "big"), int.from_bytes(lengths[8:], "big")
    if text > _LARGEST_FACTS or blob > largest:
        raise ValueError(f"a message of {text} and {blob} bytes")
    facts = json.loads(_read(source, text))
    if not isinstance(facts, dict):
        raise ValueError("a message that is no object")
    return facts, _read(source, blob)


def prefixed(kind: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors as ``KIND.NAME``, each contiguous in memory."""
    return {f"{kind}.{name}": value.contiguous() for name, value in tensors.items()}


def failure(error: Exception) -> dict[str, str]:
    """Log an error, and return the event that reports it."""
    logging.getLogger(__name__).error("the sandboxed process failed", exc_info=error)
    return {"event": FAILED, "type": type(error).__name__, "text": str(error)}


def _read(source: socket.socket, size: int) -> bytes:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        count = source.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]
    return bytes(content)
