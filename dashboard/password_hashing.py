"""Argon2, a few passwords at a time: each takes 100 MB, and many people may sign in at once."""

from __future__ import annotations

import threading

from django.conf import settings
from django.contrib.auth import hashers

# Of this process: several web processes hash one password each.
_turns = threading.BoundedSemaphore(1 if settings.WEB_CONCURRENCY > 1 else 2)


class Argon2PasswordHasher(hashers.Argon2PasswordHasher):
    """Django's hasher, in turns."""

    def encode(self, password: str, salt: str) -> str:
        with _turns:
            return super().encode(password, salt)

    def verify(self, password: str, encoded: str) -> bool:
        with _turns:
            return super().verify(password, encoded)
