"""Argon2, two passwords at a time: each takes 100 MB, and many people may sign in at once."""

from __future__ import annotations

import threading

from django.contrib.auth import hashers

_turns = threading.BoundedSemaphore(2)


class Argon2PasswordHasher(hashers.Argon2PasswordHasher):
    """Django's hasher, in turns."""

    def encode(self, password: str, salt: str) -> str:
        with _turns:
            return super().encode(password, salt)

    def verify(self, password: str, encoded: str) -> bool:
        with _turns:
            return super().verify(password, encoded)
