"""Repeated requests: OpenAI's clients send a POST again after a lost answer, without a key for it."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from django.core.cache import cache
from django.db import IntegrityError

from dashboard.api import access
from dashboard.api.access import Call
from dashboard.models import Job

REMEMBERED_SECONDS = 3600


def is_retry(request: Call) -> bool:
    """Return whether the client says that it has sent this request before."""
    return request.headers.get("x-stainless-retry-count", "0").strip() not in ("", "0")


def start_once(request: Call, kind: Job.Kind, start: Callable[[str], Job]) -> Job:
    """Return the job that an earlier try of this request started, or `start(key)`.

    Requests with an Idempotency-Key are told apart by it, others by their token and body if they say that
    they are a retry.
    """
    if access.idempotency_key(request):
        return access.once(request, kind, start)
    name = f"openai:{request.auth.pk}:{access.fingerprint(request)}"
    # Stored before the job is started: the first try may still be at work when the second arrives.
    key = (is_retry(request) and cache.get(name)) or f"retry {secrets.token_hex(16)}"
    cache.set(name, key, REMEMBERED_SECONDS)
    job = Job.objects.find_by_idempotency_key(request.auth.project, key)
    if job is None:
        try:
            return start(key)
        except IntegrityError:
            job = Job.objects.find_by_idempotency_key(request.auth.project, key)
            if job is None:
                raise
    return job
