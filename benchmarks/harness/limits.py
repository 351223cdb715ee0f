"""Limits of this machine, to compare figures with."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from torch.utils.benchmark import Timer

from oncofed.loopback import require_loopback

_LOOPBACK_BYTES = 256 << 20
_DISK_BYTES = 256 << 20
_CHUNK = 4 << 20


class Limits:
    """Measures each limit at its first use.

    Args:
        device: to measure memory and arithmetic of.
        folder: on the disk to measure.
        known: limits measured before, by name; new ones are added.
        found: called with name and value of each new limit.
    """

    def __init__(
        self,
        device: torch.device,
        folder: Path,
        known: dict[str, float] | None = None,
        found: Callable[[str, float], None] = lambda name, value: None,
    ) -> None:
        self._device, self._folder, self._found = device, folder, found
        self._known = known if known is not None else {}

    def memory_bandwidth(self) -> float:
        """Return the memory bandwidth of a large copy.

        Bytes a second, read plus written.
        """
        return self._once(f"memory of {self._device.type}, bytes/s", self._measure_memory)

    def matrix_rate(self, dtype: torch.dtype) -> float:
        """Return FLOP/s of a large square matrix product."""
        name = str(dtype).removeprefix("torch.")
        return self._once(
            f"matrix product of {name} on {self._device.type}, FLOP/s", lambda: self._measure_matrix(dtype)
        )

    def disk_read(self) -> float:
        """Return bytes a second of reading an uncached file."""
        return self._once("disk read, bytes/s", lambda: measure_disk(self._folder))

    def loopback_tls(self) -> float:
        """Return bytes a second of TLS 1.3 on loopback.

        One connection, with both ends in this process.
        """
        return self._once("TLS over loopback, bytes/s", lambda: measure_tls(self._folder))

    def _once(self, name: str, measure: Callable[[], float]) -> float:
        if name not in self._known:
            self._known[name] = measure()
            self._found(name, self._known[name])
        return self._known[name]

    def _measure_memory(self) -> float:
        count = (1 << 30 if self._device.type == "cuda" else 1 << 28) // 4
        source = torch.rand(count, device=self._device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / _seconds("target.copy_(source)", {"target": target, "source": source})

    def _measure_matrix(self, dtype: torch.dtype) -> float:
        size = 8192 if self._device.type == "cuda" else 1536
        one, two = (torch.randn(size, size, device=self._device, dtype=dtype) for _ in range(2))
        return 2 * size**3 / _seconds("one @ two", {"one": one, "two": two})


def _seconds(statement: str, values: dict[str, torch.Tensor]) -> float:
    timer = Timer(statement, globals=values, num_threads=torch.get_num_threads())
    timer.timeit(3)
    return timer.blocked_autorange(min_run_time=0.5).median


def measure_disk(folder: Path) -> float:
    """Return bytes a second of reading an uncached file."""
    path = folder / "disk.bin"
    chunk = os.urandom(_CHUNK)
    with path.open("wb") as file:
        for _ in range(_DISK_BYTES // _CHUNK):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    try:
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            buffer = bytearray(_CHUNK)
            begun = time.perf_counter()
            while file.readinto(buffer):
                pass
            return _DISK_BYTES / (time.perf_counter() - begun)
    finally:
        path.unlink()


def measure_tls(folder: Path, size: int = _CHUNK) -> float:
    """Return bytes a second of TLS on loopback.

    One connection, memory to memory.

    Args:
        folder: for the key.
        size: bytes of each buffer, which is copied repeatedly. A few million stay in the processor's cache.
    """
    key_file, certificate_file = _own_certificate(folder)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate_file, key_file)
    client_side = ssl.create_default_context(cafile=str(certificate_file))

    times = max(1, _LOOPBACK_BYTES // size)
    # Pages are allocated at the first write.
    source, target = (memoryview(bytearray(b"w") * size) for _ in range(2))

    def serve(listener: socket.socket) -> None:
        raw, _ = listener.accept()
        with server_side.wrap_socket(raw, server_side=True) as connection:
            connection.sendall(b"r")
            for _ in range(times):
                left = target
                while left:
                    left = left[connection.recv_into(left) :]
            connection.sendall(b"d")

    address = require_loopback()[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        raw = socket.create_connection(listener.getsockname()[:2])
        with client_side.wrap_socket(raw, server_hostname="localhost") as connection:
            connection.recv(1)
            begun = time.perf_counter()
            for _ in range(times):
                connection.sendall(source)
            connection.recv(1)
            seconds = time.perf_counter() - begun
        thread.join()
    return times * size / seconds


def _own_certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    key_file, certificate_file = folder / "limits.key", folder / "limits.crt"
    key_file.touch(mode=0o600)
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate_file
