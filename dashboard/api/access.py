"""Tokens, rate limits and idempotency keys of API requests.

The gate refuses requests without a valid token; the QuerySets decide what a token may read.
"""

from __future__ import annotations

import fcntl
import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from django.conf import settings
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.http import HttpRequest
from django.utils.translation import gettext as _
from ninja.security import HttpBearer
from ninja.throttling import BaseThrottle

from dashboard.api.refusals import Refusal, invalid
from dashboard.models import ApiToken, Job, Role
from dashboard.models.accounts.project import digest_of, refusal_for

logger = logging.getLogger(__name__)
READS = ("GET", "HEAD")
WINDOW_SECONDS = 60.0
REMEMBERED_SECONDS = 24 * 3600


class Call(HttpRequest):
    """The request as API functions receive it."""

    api_token: ApiToken | None
    auth: ApiToken


class Token(HttpBearer):
    """Requires a token, and `role` in its project for writes, before the body is parsed."""

    def __init__(self, role: Role = Role.EDITOR) -> None:
        super().__init__()
        self.role = role

    def authenticate(self, request: HttpRequest, token: str) -> ApiToken | None:
        token_row: ApiToken | None = request.api_token  # type: ignore[attr-defined]
        if token_row and request.method not in READS:
            self._require_role(token_row)
        return token_row

    def _require_role(self, token: ApiToken) -> None:
        if token.projects(self.role).exists():
            return
        if token.scope == ApiToken.Scope.READ:
            raise PermissionDenied(_("This token has read access only. Create a token with write access."))
        raise PermissionDenied(refusal_for(self.role))


class RateLimit(BaseThrottle):
    """Limits reads or writes per token in any 60 seconds, counted in a file that all web processes share."""

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.waiting = threading.local()

    def allow_request(self, request: HttpRequest) -> bool:
        if (request.method in READS) != self.reads:
            return True
        limit = settings.API_READS_PER_MINUTE if self.reads else settings.API_WRITES_PER_MINUTE
        token: ApiToken = request.auth  # type: ignore[attr-defined]
        try:
            seconds = count_call(f"{'reads' if self.reads else 'writes'}-{token.digest}", limit)
        except OSError:
            # A full disk refuses nobody.
            logger.warning("calls are not counted", exc_info=True)
            return True
        self.waiting.seconds = seconds
        return seconds == 0

    def wait(self) -> float:
        """Return the seconds until the request that this thread refused last would be accepted."""
        return float(max(1.0, self.waiting.seconds))


def count_call(name: str, limit: int) -> float:
    """Count a call and return 0, or return the seconds until the next one is within the limit."""
    folder = Path(settings.DATA_DIR) / "run" / "calls"
    folder.mkdir(mode=0o700, exist_ok=True)
    now = time.time()
    with (folder / name).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        # [second, calls], oldest first.
        calls = [call for call in json.loads(text or "[]") if now - WINDOW_SECONDS < call[0] <= now]
        if sum(count for _second, count in calls) >= limit:
            return float(calls[0][0] + WINDOW_SECONDS - now if calls else WINDOW_SECONDS)
        if calls and calls[-1][0] == int(now):
            calls[-1][1] += 1
        else:
            calls.append([int(now), 1])
        file.truncate(0)
        file.write(json.dumps(calls))
    return 0.0


# Shared by both APIs: a token has one budget.
RATE_LIMITS: list[BaseThrottle] = [RateLimit(reads=True), RateLimit(reads=False)]


def idempotency_key(request: HttpRequest) -> str:
    """Return the Idempotency-Key header, or ""."""
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > 200 or not key.isascii() or not (key.isprintable() or not key):
        raise invalid("Idempotency-Key", _("`Idempotency-Key` takes up to 200 printable ASCII characters."))
    return key


def once(request: Call, kind: Job.Kind, start: Callable[[str], Job], *others: Job.Kind) -> Job:
    """Return the job of one of the kinds that an earlier request with this key started, or `start(key)`."""
    key, project = idempotency_key(request), request.auth.project
    cache_key, digest = _cache_key(request, "once"), fingerprint(request)
    job = Job.objects.find_by_idempotency_key(project, key)
    if job is None:
        try:
            job = start(key)
        except IntegrityError:
            # The same request may arrive twice at once; any other cause is a real error.
            job = Job.objects.find_by_idempotency_key(project, key)
            if job is None:
                raise
        else:
            if cache_key:
                cache.set(cache_key, digest, REMEMBERED_SECONDS)
            return job
    # After a day, only the kind of work can still reveal a different request.
    if job.kind not in (kind, *others) or cache.get(cache_key, digest) != digest:
        raise _key_reused()
    return job


def _key_reused() -> Refusal:
    message = _("This `Idempotency-Key` was used for a different request. Choose a new one.")
    return invalid("Idempotency-Key", message)


def fingerprint(request: HttpRequest) -> str:
    """Return a digest of address and body, to detect a different request with the same key."""
    body: object
    if request.content_type == "multipart/form-data":  # the raw body has a random boundary
        parts = [(name, file.name, file.size) for name, files in request.FILES.lists() for file in files]
        body = [sorted(request.POST.lists()), parts]
    else:
        body = request.body
    return digest_of(repr((request.path, body)))


def first_time(request: Call, act: str) -> bool:
    """Record the key and return whether this is its first request in the last day."""
    name = _cache_key(request, act)
    return not name or bool(cache.add(name, fingerprint(request), REMEMBERED_SECONDS))


def done_before(request: Call, act: str) -> bool:
    """Return whether a request with this key was processed in the last day. Records nothing.

    Refuses a key that was used with another body, so call it before the action.
    """
    name = _cache_key(request, act)
    known = cache.get(name) if name else None
    if known is not None and known != fingerprint(request):
        raise _key_reused()
    return known is not None


def do_once(request: Call, act: str, do: Callable[[], object]) -> None:
    """Call `do` unless a request with this key was processed. An exception of `do` leaves the key unused."""
    if done_before(request, act):
        return
    # One transaction: after a crash, or with two equal requests at once, the action happens exactly once.
    with transaction.atomic():
        if first_time(request, act):
            do()


def _cache_key(request: Call, act: str) -> str:
    key = idempotency_key(request)
    return f"api:{request.auth.project_id}:{digest_of(f'{act} {key}')}" if key else ""


def once_only(request: Call, act: str) -> None:
    """Refuse a repeated request, because the first response contained a secret that is not stored."""
    if done_before(request, act) or not first_time(request, act):
        message = _(
            "A request with this `Idempotency-Key` was already processed. Only its response has the secret."
        )
        raise Refusal(409, "already_done", message, "Idempotency-Key")
