"""Access before any view: sign-in, API tokens, the current project, and the size of request bodies.

One middleware covers pages, API, event streams and the admin. Every view requires sign-in unless it is marked
`login_not_required`. What a signed-in user may do is decided by the QuerySets, not here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from functools import partial
from importlib import import_module
from typing import Any
from urllib.parse import unquote

from allauth.account.adapter import DefaultAccountAdapter
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import BadRequest
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, parse_cookie
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from dashboard import openai_errors
from dashboard.models import ApiToken, Membership, Project, Role, User
from dashboard.models.operations.alert import current_alerts

# Routes for signed-in users who are not a member of any project.
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
# Routes about the whole installation, which superusers may use without a project.
SUPERUSER_ROUTES = frozenset({"queue-index", "queue-board", "queue-cancel", "worker-pause", "worker-resume"})
# Routes that accept a file.
UPLOAD_PATHS = ("/datasets/new/", "/api/v1/datasets", "/v1/files")
API_PREFIXES = ("/api/", openai_errors.PREFIX)
# Browsers take two slashes for the start of a host, a backslash for a slash, and ignore tabs and line breaks.
LOCAL_PATH = re.compile(r"(/(?!/)[^/\\\x00-\x1f\x7f]*)+")
PATH_LENGTH = 2048
CONTENT_LENGTH = re.compile("[0-9]{1,18}")
FORM_NOT_SENT = gettext_lazy(
    "Your session ended before the form was sent, so nothing was saved. Sign in, then go back in your "
    "browser to the form: what you typed is still there."
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Request(HttpRequest):
    """The request as views of signed-in users receive it."""

    user: User
    memberships: list[Membership]
    project: Project
    htmx: HtmxDetails
    api_token: ApiToken | None


class GateMiddleware(LoginRequiredMiddleware):
    """Requires sign-in or an API token, and sets `api_token`, `memberships` and `project` on the request."""

    sync_capable = True
    async_capable = False

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if not CONTENT_LENGTH.fullmatch(request.META.get("CONTENT_LENGTH") or "0"):
            raise BadRequest("The length of the body is no number.")
        # A body may declare any of Python's codecs, and some cannot decode a form.
        request.encoding = settings.DEFAULT_CHARSET
        request.api_token = bearer_token(request.headers.get("Authorization", ""))  # type: ignore[attr-defined]
        request.memberships = memberships_of(request)  # type: ignore[attr-defined]
        request.project = current_project(request)  # type: ignore[attr-defined]
        response: HttpResponse = self.get_response(request)  # type: ignore[assignment]
        is_call = request.path.startswith(API_PREFIXES)
        if response.status_code == 405 and not is_call:
            # Django's answer is empty, and the browser would show its own error.
            allowed = response["Allow"]
            response = render(request, "405.html", status=405)
            response["Allow"] = allowed
        # Forms send the address of the next page, to allauth and to Django's admin as well.
        if not is_local(response.get("Location", "/")):
            response["Location"] = reverse("home")
        # The browser's Back button may show a page and its form again; proxies store neither.
        response.setdefault("Cache-Control", f"private, {'no-store' if is_call else 'no-cache'}")
        return response

    def process_view(
        self,
        request: HttpRequest,
        view_func: Callable[..., HttpResponseBase],
        view_args: tuple[Any, ...],
        view_kwargs: dict[str, Any],
    ) -> HttpResponseBase | None:
        """Return the refusal, or None to call the view."""
        if request.path.startswith(API_PREFIXES):
            return require_token(request)
        require_readable_form(request)
        refusal: HttpResponseBase | None = super().process_view(request, view_func, view_args, view_kwargs)
        if refusal or not getattr(view_func, "login_required", True):
            return refusal
        return require_project(request)

    def handle_no_permission(  # type: ignore[override]
        self, request: HttpRequest, _view_func: Callable[..., HttpResponseBase]
    ) -> HttpResponse:
        """Redirect to sign-in, or to the set-up before the first account exists."""
        if not User.objects.exists():
            return redirect("set-up")
        if request.htmx:  # type: ignore[attr-defined]
            # A live region sends the whole page to sign-in, not itself.
            try:
                back = request.htmx.current_url_abs_path or "/"  # type: ignore[attr-defined]
            except ValueError:  # the header holds no valid address
                back = "/"
            return HttpResponseClientRedirect(redirect_to_login(back).url)
        if request.method in ("GET", "HEAD"):
            return redirect_to_login(request.get_full_path())
        messages.warning(request, FORM_NOT_SENT)
        # After sign-in, a GET of an address that accepts only POST would fail.
        return redirect_to_login("/")


def require_readable_form(request: HttpRequest) -> None:
    """Parse a posted form. Raises BadRequest for one that no browser sends.

    Django's parser refuses some malformed bodies, and reads others as a form without fields.
    """
    if request.method != "POST":
        return
    is_empty = not request.POST and not request.FILES
    if is_empty and request.content_type == "multipart/form-data":
        # A form without fields consists of its last boundary.
        boundary = request.content_params.get("boundary", "") if request.content_params else ""
        if int(request.META.get("CONTENT_LENGTH") or 0) > len(f"--{boundary}--\r\n"):
            raise BadRequest("No part of the form can be read.")


def require_project(request: HttpRequest) -> HttpResponse | None:
    """Refuse pages that show a project's rows to users without a project."""
    match = request.resolver_match
    name = match.view_name if match else ""
    if request.project or name in PROJECTLESS_ROUTES or name.startswith("admin:"):  # type: ignore[attr-defined]
        return None
    if request.user.is_superuser and name in SUPERUSER_ROUTES:  # type: ignore[union-attr]
        return None
    return render(request, "accounts/projects/none.html", status=403)


def require_token(request: HttpRequest) -> HttpResponse | None:
    """Refuse API calls without a token. Signed-in users may also read the API documentation."""
    match = request.resolver_match
    is_documentation = match and match.url_name in ("openapi-view", "openapi-json")
    if request.api_token or (is_documentation and request.user.is_authenticated):  # type: ignore[attr-defined]
        return None
    return api_error(401, "unauthorized", _("Send a valid API token: Authorization: Bearer gw_…"))


def api_error(status: int, code: str, message: str, field: str | None = None) -> JsonResponse:
    """Return an error in the API's format."""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    problem = {"code": code, "message": message, "field": field}
    return JsonResponse({"error": problem}, status=status, headers=headers)


def bearer_token(header: str) -> ApiToken | None:
    """Return the valid token of an Authorization header."""
    kind, _space, secret = header.partition(" ")
    return ApiToken.objects.authenticate(secret.strip()) if kind.lower() == "bearer" and secret else None


def memberships_of(request: HttpRequest) -> list[Membership]:
    """Return the memberships of a signed-in user with their projects, by name of the project."""
    if not request.user.is_authenticated:
        return []
    own = request.user.memberships.filter(user__is_active=True)
    return list(own.select_related("project").order_by("project__name"))


def current_project(request: HttpRequest) -> Project | None:
    """Return the project that a signed-in user opened last, else their first."""
    projects = [membership.project for membership in request.memberships]  # type: ignore[attr-defined]
    opened = request.session.get("project", 0) if projects else 0
    return next((project for project in projects if project.pk == opened), next(iter(projects), None))


def frame(request: HttpRequest) -> dict[str, Any]:
    """Return the context of the frame around every page: current project, role and alerts."""
    # A request that was refused early has none of these.
    project, user = getattr(request, "project", None), getattr(request, "user", None)
    memberships: list[Membership] = getattr(request, "memberships", [])
    context: dict[str, Any] = {"project": project, "projects": [], "role": None}
    if user is None or not user.is_authenticated:
        return context
    if project is not None:
        role = next(
            Role(membership.role) for membership in memberships if membership.project_id == project.pk
        )
        context |= {
            "projects": [membership.project for membership in memberships],
            "role": role,
            "may_edit": role in Role.EDITOR.and_above(),
            "may_manage": role in Role.MANAGER.and_above(),
        }
    is_administrator = user.is_superuser or context.get("may_manage", False)
    # Evaluated by templates with the frame only; live regions have none.
    alerts = partial(current_alerts, administrator=is_administrator)
    return {**context, "is_administrator": is_administrator, "alerts": alerts}


def is_local(address: str) -> bool:
    """Return whether the address is a path of this site, as written and however often it is decoded."""
    path = re.split("[?#]", address, maxsplit=1)[0]
    # The length bounds the rounds of decoding.
    if len(path) > PATH_LENGTH:
        return False
    while LOCAL_PATH.fullmatch(path):
        encoded, path = path, unquote(path)
        if path == encoded:
            return True
    return False


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    """Closes sign-up: accounts come from invitations and the set-up code. Redirects within the site."""

    def is_open_for_signup(self, _request: HttpRequest) -> bool:
        return False

    def is_safe_url(self, url: str) -> bool:
        return is_local(url)


class BodyLimit:
    """ASGI wrapper that limits request bodies before Django spools them to disk.

    Ordinary routes accept 1 MB. Upload routes accept UPLOAD_LIMIT_BYTES, and more than 1 MB only from callers
    with a session or a token.
    """

    def __init__(self, inner: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self.inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        limit = settings.BODY_LIMIT_BYTES
        announced = headers.get("content-length", "")
        length = int(announced) if CONTENT_LENGTH.fullmatch(announced) else None
        is_large = "transfer-encoding" in headers if length is None else length > limit
        # A body declared as small keeps the ordinary limit on upload routes as well.
        if is_large and scope["path"].rstrip("/") in [path.rstrip("/") for path in UPLOAD_PATHS]:
            try:
                is_authenticated = await sync_to_async(_is_authenticated)(headers)
            except (InterfaceError, OperationalError):
                await _refuse(
                    scope, send, 503, "unavailable", _("The database cannot be reached at the moment.")
                )
                return
            if not is_authenticated:
                await _refuse(scope, send, 401, "unauthorized", _("Sign in before you upload a file."))
                return
            limit = settings.UPLOAD_LIMIT_BYTES
        if length is not None and length > limit:
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
                # Django sees a client that disconnected and deletes what it has spooled.
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
    return _("The request is larger than the limit of %(megabytes)d MB.") % {"megabytes": limit // 1024**2}


def _is_authenticated(headers: dict[str, str]) -> bool:
    """Return whether the headers hold a valid token or session."""
    if bearer_token(headers.get("authorization", "")):
        return True
    # Django's parser: the standard library's drops all cookies when one is malformed.
    key = parse_cookie(headers.get("cookie", "")).get(settings.SESSION_COOKIE_NAME)
    if key is None:
        return False
    store = import_module(settings.SESSION_ENGINE).SessionStore(key)
    return User.objects.filter(pk=store.get("_auth_user_id"), is_active=True).exists()


async def _refuse(scope: Scope, send: Send, status: int, code: str, message: str) -> None:
    is_api = scope["path"].startswith(API_PREFIXES)
    error: HttpResponse = api_error(status, code, message)
    if scope["path"].startswith(openai_errors.PREFIX):
        error = openai_errors.translate(error)
    body = error.content if is_api else json.dumps(message).encode()
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
