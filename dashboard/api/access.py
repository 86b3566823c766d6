"""Who calls, how often, and whether this very call was answered before.

The gate has already refused calls without a working token; what a token may see, the QuerySets decide.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable

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
from dashboard.models.project import digest_of, refusal_for

READS = ("GET", "HEAD")
WINDOW_SECONDS = 60.0
REMEMBERED_SECONDS = 24 * 3600


class Call(HttpRequest):
    """What an API function receives."""

    api_token: ApiToken | None
    auth: ApiToken


class Token(HttpBearer):
    """A working token. Whatever is no read needs `role` in its project, before the body is looked at."""

    def __init__(self, role: Role = Role.EDITOR) -> None:
        super().__init__()
        self.role = role

    def authenticate(self, request: HttpRequest, token: str) -> ApiToken | None:
        """The token that the gate found."""
        found: ApiToken | None = request.api_token  # type: ignore[attr-defined]
        if found and request.method not in READS:
            self._require_role(
                found, names_an_object=bool(request.resolver_match and request.resolver_match.kwargs)
            )
        return found

    def _require_role(self, token: ApiToken, *, names_an_object: bool) -> None:
        if token.projects(self.role).exists():
            return
        if token.scope == ApiToken.Scope.READ:
            raise PermissionDenied(_("This token has read access only. Create a token with write access."))
        # An owner who has left the project learns of no object in it: the fetch answers 404.
        if token.projects().exists() or not names_an_object:
            raise PermissionDenied(refusal_for(self.role))


class Pace(BaseThrottle):
    """At most so many reads, or so many writes, per token in any 60 seconds.

    Counted in this process's memory, so that neither the broker nor the database is asked.
    """

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.lock = threading.Lock()
        self.calls: dict[str, deque[float]] = defaultdict(deque)
        self.waiting = threading.local()

    def allow_request(self, request: HttpRequest) -> bool:
        """Whether there is room; if so, the call is counted."""
        if (request.method in READS) != self.reads:
            return True
        limit = settings.API_READS_PER_MINUTE if self.reads else settings.API_WRITES_PER_MINUTE
        now = time.monotonic()
        with self.lock:
            calls = self.calls[request.auth.digest]  # type: ignore[attr-defined]
            while calls and calls[0] <= now - WINDOW_SECONDS:
                calls.popleft()
            if len(calls) < limit:
                calls.append(now)
                return True
            self.waiting.seconds = calls[0] + WINDOW_SECONDS - now if calls else WINDOW_SECONDS
            return False

    def wait(self) -> float:
        """Seconds until the call that this thread has just refused would be let in."""
        return float(max(1.0, self.waiting.seconds))


def idempotency_key(request: HttpRequest) -> str:
    """The Idempotency-Key header, or ""."""
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > 200 or not key.isascii() or not (key.isprintable() or not key):
        raise invalid("Idempotency-Key", _("`Idempotency-Key` takes up to 200 printable ASCII characters."))
    return key


def once(request: Call, kind: Job.Kind, start: Callable[[str], Job]) -> Job:
    """The job that an earlier call with this Idempotency-Key started, else that of `start(key)`."""
    key, project = idempotency_key(request), request.auth.project
    memory, asked = _memory_of(request, "once"), _fingerprint(request)
    job = Job.objects.find_by_idempotency_key(project, key)
    if job is None:
        try:
            job = start(key)
        except IntegrityError:
            # The same call may have arrived twice at one moment; any other cause is not ours to hide.
            job = Job.objects.find_by_idempotency_key(project, key)
            if job is None:
                raise
        else:
            if memory:
                cache.set(memory, asked, REMEMBERED_SECONDS)
            return job
    # After a day only the kind of work can still tell another call from the same one.
    if job.kind != kind or cache.get(memory, asked) != asked:
        raise _used_otherwise()
    return job


def _used_otherwise() -> Refusal:
    message = _("This `Idempotency-Key` was used for a different request. Choose a new one.")
    return invalid("Idempotency-Key", message)


def _fingerprint(request: HttpRequest) -> str:
    """What a call asks for: its address, and its body or the parts of its form."""
    body: object
    if request.content_type == "multipart/form-data":  # read by now, and its boundary is drawn by chance
        parts = [(name, file.name, file.size) for name, files in request.FILES.lists() for file in files]
        body = [sorted(request.POST.lists()), parts]
    else:
        body = request.body
    return digest_of(repr((request.path, body)))


def first_time(request: Call, act: str) -> bool:
    """Whether no call with this Idempotency-Key has done `act` in the last day; remembers that one has now.

    For acts that start no job of their own.
    """
    name = _memory_of(request, act)
    return not name or bool(cache.add(name, _fingerprint(request), REMEMBERED_SECONDS))


def done_before(request: Call, act: str) -> bool:
    """Whether a call with this Idempotency-Key has done `act` in the last day. Remembers nothing.

    Refuses the key where that call had another body: ask before anything is done.
    """
    name = _memory_of(request, act)
    known = cache.get(name) if name else None
    if known is not None and known != _fingerprint(request):
        raise _used_otherwise()
    return known is not None


def do_once(request: Call, act: str, do: Callable[[], object]) -> None:
    """Do it, unless a call with this Idempotency-Key has: whoever repeats a call only wants its answer.

    Somebody else may have undone it since, and that stays so. What `do` refuses leaves the key free.
    """
    if done_before(request, act):
        return
    # Remembered with what is done, or neither: a process that dies in between, or the same call at the same
    # moment, must not let it be done twice.
    with transaction.atomic():
        if first_time(request, act):
            do()


def _memory_of(request: Call, act: str) -> str:
    key = idempotency_key(request)
    return f"api:{request.auth.project_id}:{digest_of(f'{act} {key}')}" if key else ""


def once_only(request: Call, act: str) -> None:
    """Refuse a call repeated with its Idempotency-Key where the first answer held a secret we do not keep."""
    if done_before(request, act) or not first_time(request, act):
        message = _(
            "A request with this `Idempotency-Key` was already processed. Only its response has the secret."
        )
        raise Refusal(409, "already_done", message, "Idempotency-Key")
