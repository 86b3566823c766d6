"""The addresses of an inference job: a Unix socket, and on request TCP for web processes on other machines.

A job that listens on TCP writes its address beside its socket, in the folder that all machines share. It
sends a challenge first; the other side answers with a proof that it knows the key. Standard library only.
"""

from __future__ import annotations

import contextlib
import hmac
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit


@contextlib.contextmanager
def short_address(path: Path) -> Iterator[str]:
    """Yield an address of a socket that fits into Linux's 107 bytes, however long its path is."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def address_file(path: Path) -> Path:
    """Return the file with the TCP address of the job with this socket."""
    return path.with_suffix(".address")


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port of `host` or `host:port`; 0 is any free port. Raises ValueError."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.netloc != text or "@" in text:
        raise ValueError("not an address")
    return parts.hostname, parts.port or 0


def connection_key(secret: str) -> str:
    """Return the key of an installation's connections, which does not give away its secret."""
    return hmac.new(secret.encode(), b"connections to inference jobs", "sha256").hexdigest()


def proof_of(key: str, challenge: bytes) -> bytes:
    """Return the line that answers a challenge."""
    return hmac.new(key.encode(), challenge.strip(), "sha256").hexdigest().encode() + b"\n"
