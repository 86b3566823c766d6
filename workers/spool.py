"""Lines from one thread to another, in order and without a limit: where there are many, on disk.

The reading side looks at the first line and drops it once it is dealt with. Knows nothing of what lines say.
"""

from __future__ import annotations

import struct
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import IO

MEMORY_BYTES = 8 * 1024**2
_LENGTH = struct.Struct("<I")


class Spool:
    """What is put first comes out first. The file has no name, so nothing of it can stay behind."""

    def __init__(self, folder: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self.folder, self.memory_bytes = folder, memory_bytes
        self.is_closed = False
        # From the oldest to the newest: in memory, then on disk, then what a full disk did not take.
        self._memory: deque[bytes] = deque()
        self._refused: deque[bytes] = deque()
        self._held = 0
        self._file: IO[bytes] | None = None
        self._read = self._written = 0
        self._changed = threading.Condition()

    def put(self, line: bytes) -> None:
        """Append a line; never waits for the reading side."""
        with self._changed:
            is_full = self._held + len(line) > self.memory_bytes and self._memory
            if not (self._written or self._refused or is_full):
                self._memory.append(line)
                self._held += len(line)
            elif self._refused or not self._to_disk(line):
                self._refused.append(line)
            self._changed.notify()

    def close(self) -> None:
        """No further line comes."""
        with self._changed:
            self.is_closed = True
            self._changed.notify()

    def wait(self, seconds: float) -> None:
        """Until there is a line, or none will come, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._memory or self.is_closed, seconds)

    def first(self) -> bytes | None:
        """The oldest line, which stays; None where there is none now."""
        with self._changed:
            return self._memory[0] if self._memory else None

    def drop(self) -> None:
        """Forget the oldest line."""
        with self._changed:
            self._held -= len(self._memory.popleft())
            if not self._memory and self._written:
                self._from_disk()
            if not self._written:
                self._memory.extend(self._refused)
                self._held += sum(map(len, self._refused))
                self._refused.clear()

    def discard(self) -> None:
        """Nobody reads on."""
        with self._changed:
            self._memory.clear()
            self._refused.clear()
            self._held = self._read = self._written = 0
            if self._file is not None:
                self._file.close()
                self._file = None

    def _to_disk(self, line: bytes) -> bool:
        """Whether there was room for it; a full disk costs memory, never a line."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
            self._file.seek(self._written)
            whole = _LENGTH.pack(len(line)) + line
            if self._file.write(whole) != len(whole):
                return False
        except OSError:
            return False
        self._written += len(whole)
        return True

    def _from_disk(self) -> None:
        assert self._file is not None  # noqa: S101 - something was written
        self._file.seek(self._read)
        while self._read < self._written and self._held < self.memory_bytes // 2:
            (length,) = _LENGTH.unpack(self._file.read(_LENGTH.size))
            self._memory.append(self._file.read(length))
            self._held += length
            self._read += _LENGTH.size + length
        if self._read == self._written:
            self._read = self._written = 0
            self._file.truncate(0)
