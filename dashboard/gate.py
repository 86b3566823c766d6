"""Who gets in: every route denies unless it is listed here, and no body is read past its limit.

One gate stands before pages, API, event streams and admin alike. What a signed-in caller may do is decided
by the QuerySets, not here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from importlib import import_module
from typing import Any

from allauth.account.adapter import DefaultAccountAdapter
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, parse_cookie
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from dashboard.models import ApiToken, Project, Role, User
from dashboard.models.alarm import current_alerts

# The only routes that answer without a session or a token.
PUBLIC_ROUTES = frozenset(
    {
        "health",
        "set-up",
        "account_login",
        "account_logout",
        "account_inactive",
        "account_reset_password",
        "account_reset_password_done",
        "account_reset_password_from_key",
        "account_reset_password_from_key_done",
        "invitation-accept",
        "share-link-open",
    }
)
# Routes that make sense for a signed-in person who belongs to no project (yet).
PROJECTLESS_ROUTES = frozenset(
    {
        "home",
        "settings",
        "health-index",
        "storage-index",
        "storage-clean-up",
        "project-create",
        "account_change_password",
        "account_set_password",
    }
)
# Routes of the installation as a whole, which a superuser needs in or out of a project.
SUPERUSER_ROUTES = frozenset({"queue-index", "queue-board", "worker-pause", "worker-resume"})
# Routes that take a file and may therefore be longer than an ordinary request.
UPLOAD_PATHS = ("/datasets/new/", "/api/v1/datasets")
API_PREFIX = "/api/"

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Request(HttpRequest):
    """What views receive once the gate has let a signed-in person through."""

    user: User
    project: Project
    htmx: HtmxDetails
    api_token: ApiToken | None


class GateMiddleware:
    """Denies every route to strangers unless listed; finds the caller's token and present project."""

    sync_capable = True
    async_capable = False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Attach `api_token` and `project` to the request, then go on."""
        # A body may name any codec of Python's for itself, and some cannot read a form.
        request.encoding = settings.DEFAULT_CHARSET
        request.api_token = bearer_token(request.headers.get("Authorization", ""))  # type: ignore[attr-defined]
        request.project = present_project(request)  # type: ignore[attr-defined]
        response = self.get_response(request)
        # Pages may come back with Back, what was typed included; nobody in between may keep either.
        is_call = request.path.startswith(API_PREFIX)
        response.setdefault("Cache-Control", f"private, {'no-store' if is_call else 'no-cache'}")
        return response

    def process_view(
        self, request: HttpRequest, _view: object, _args: object, _kwargs: object
    ) -> HttpResponseBase | None:
        """Let the request pass, or answer it here."""
        match = request.resolver_match
        if match and match.view_name in PUBLIC_ROUTES:
            return None
        if request.path.startswith(API_PREFIX):
            return self._api_refusal(request)
        if request.user.is_authenticated:
            return self._without_project(request)
        if not User.objects.exists():
            return redirect("set-up")
        return to_sign_in(request)

    def _without_project(self, request: HttpRequest) -> HttpResponse | None:
        """Every other page shows a project's rows: say what is missing instead of showing nothing."""
        match = request.resolver_match
        name = match.view_name if match else ""
        if request.project or name in PROJECTLESS_ROUTES or name.startswith("admin:"):  # type: ignore[attr-defined]
            return None
        if request.user.is_superuser and name in SUPERUSER_ROUTES:  # type: ignore[union-attr]
            return None
        return render(request, "projects/none.html", status=403)

    def _api_refusal(self, request: HttpRequest) -> HttpResponse | None:
        """Calls need a token; the API's own documentation also opens for a signed-in person."""
        match = request.resolver_match
        reading_docs = match and match.url_name in ("openapi-view", "openapi-json")
        if request.api_token or (reading_docs and request.user.is_authenticated):  # type: ignore[attr-defined]
            return None
        return api_error(401, "unauthorized", _("Send a valid API token: Authorization: Bearer gw_…"))


def to_sign_in(request: HttpRequest) -> HttpResponse:
    """Send a stranger to the sign-in page; a live region takes the whole page there, not itself."""
    if request.htmx:  # type: ignore[attr-defined]
        try:
            back = request.htmx.current_url_abs_path or "/"  # type: ignore[attr-defined]
        except ValueError:  # the header holds no address
            back = "/"
        return HttpResponseClientRedirect(redirect_to_login(back).url)
    # Nobody can go back to a form that was being sent: its address answers nothing but the sending.
    return redirect_to_login(request.get_full_path() if request.method in ("GET", "HEAD") else "/")


def api_error(status: int, code: str, message: str, field: str | None = None) -> JsonResponse:
    """The API's one shape of refusal."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    problem = {"code": code, "message": message, "field": field}
    return JsonResponse({"error": problem}, status=status, headers=headers)


def bearer_token(header: str) -> ApiToken | None:
    """The working token in an Authorization header."""
    kind, _space, secret = header.partition(" ")
    return ApiToken.objects.authenticate(secret.strip()) if kind.lower() == "bearer" and secret else None


def present_project(request: HttpRequest) -> Project | None:
    """The project whose pages a signed-in person looks at: the one opened last, else their first."""
    if not request.user.is_authenticated:
        return None
    mine = request.user.projects()
    chosen = mine.filter(pk=request.session.get("project", 0)).first()
    return chosen or mine.first()


def frame(request: HttpRequest) -> dict[str, Any]:
    """What the frame around every page shows: the present project, one's role, and what is wrong now."""
    # A request that is refused early has neither.
    project, user = getattr(request, "project", None), getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return {"project": None, "projects": [], "role": None}
    membership = project.memberships.filter(user=user).first() if project else None
    role = Role(membership.role) if membership else None
    is_administrator = user.is_superuser or role in Role.MANAGER.and_above()
    # Asked only by templates that have the frame: a live region has none.
    around = {
        "is_administrator": is_administrator,
        "alerts": partial(current_alerts, administrator=is_administrator),
    }
    if project is None:
        return {"project": None, "projects": [], "role": None, **around}
    return {
        **around,
        "project": project,
        "projects": list(user.projects()),
        "role": role,
        "may_edit": role in Role.EDITOR.and_above(),
        "may_manage": role in Role.MANAGER.and_above(),
    }


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    """Sign-up is closed: people come by invitation or by the set-up code."""

    def is_open_for_signup(self, _request: HttpRequest) -> bool:
        """Never."""
        return False


class BodyLimit:
    """ASGI wrapper: Django spools a whole body to disk before any view runs, so count it before that.

    Ordinary routes take 1 MB. Upload routes take the configured size, and beyond 1 MB only from a caller
    with a session or a token.
    """

    def __init__(self, inner: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a counted body, or refuse it."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        limit = settings.BODY_LIMIT_BYTES
        announced = headers.get("content-length", "")
        large = not announced.isdigit() and "transfer-encoding" in headers
        large = large or (announced.isdigit() and int(announced) > limit)
        # A body that was announced as small, or not at all, is held to the ordinary limit here as well.
        if large and scope["path"].rstrip("/") in [path.rstrip("/") for path in UPLOAD_PATHS]:
            try:
                is_known = await sync_to_async(_is_known)(headers)
            except (InterfaceError, OperationalError):
                await _refuse(scope, send, 503, "unavailable", _("The database cannot be reached just now."))
                return
            if not is_known:
                await _refuse(scope, send, 401, "unauthorized", _("Sign in before you send a file."))
                return
            limit = settings.UPLOAD_LIMIT_BYTES
        if announced.isdigit() and int(announced) > limit:
            await _refuse(scope, send, 413, "too_large", _too_large(limit))
            return
        await self._forward(scope, receive, send, limit)

    async def _forward(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        received, exceeded, answered = 0, False, False

        async def counted() -> Message:
            nonlocal received, exceeded
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                exceeded = True
                # To Django this is a caller who hung up: it drops what it has spooled.
                return {"type": "http.disconnect"}
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        await self.inner(scope, counted, watched)
        if exceeded and not answered:
            await _refuse(scope, send, 413, "too_large", _too_large(limit))


def _too_large(limit: int) -> str:
    return _("This is larger than the limit of %(megabytes)d MB.") % {"megabytes": limit // 1024**2}


def _is_known(headers: dict[str, str]) -> bool:
    """Whether the caller has a working token or a signed-in session."""
    if bearer_token(headers.get("authorization", "")):
        return True
    # Read as Django reads it: the standard library drops all cookies when another product's looks odd.
    key = parse_cookie(headers.get("cookie", "")).get(settings.SESSION_COOKIE_NAME)
    if key is None:
        return False
    store = import_module(settings.SESSION_ENGINE).SessionStore(key)
    return User.objects.filter(pk=store.get("_auth_user_id"), is_active=True).exists()


async def _refuse(scope: Scope, send: Send, status: int, code: str, message: str) -> None:
    is_api = scope["path"].startswith(API_PREFIX)
    body = api_error(status, code, message).content if is_api else json.dumps(message).encode()
    headers: Iterable[tuple[bytes, bytes]] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
        *([(b"retry-after", b"10")] if status == 503 else []),
        *([(b"www-authenticate", b"Bearer")] if status == 401 and is_api else []),
        (b"x-content-type-options", b"nosniff"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
