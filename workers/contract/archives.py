"""Zip archives of equal bytes for equal content: stored, not compressed, with one fixed time."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

ZIP_TIME = (1980, 1, 1, 0, 0, 0)
COPY_BYTES = 1024 * 1024


def store(archive: zipfile.ZipFile, name: str, content: bytes | Path) -> None:
    """Write one member; a file is copied in pieces, because weights may not fit into memory."""
    member = zipfile.ZipInfo(name, ZIP_TIME)
    member.external_attr = 0o644 << 16
    if isinstance(content, bytes):
        archive.writestr(member, content)
        return
    # The size has to be known first: it decides whether the member needs the 64-bit format.
    member.file_size = content.stat().st_size
    with content.open("rb") as source, archive.open(member, "w") as sink:
        shutil.copyfileobj(source, sink, COPY_BYTES)


def checksums(sums: dict[str, str]) -> bytes:
    """Return SHA-256 by file name in the format of `sha256sum`."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()
