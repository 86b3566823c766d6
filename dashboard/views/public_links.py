"""Answers to people who come by a link and have no account."""

from __future__ import annotations

from allauth.account.adapter import get_adapter
from django.conf import settings
from django.core.cache import cache
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse

# Wrong links that one address may try in a row, and for how long they are held against it.
MOST_MISSES, MISS_SECONDS = 20, 300


def missed(request: HttpRequest) -> HttpResponse:
    """Answer 404, or 429 to an address that keeps guessing."""
    if is_over_limit(f"shared-misses:{client_address(request)}", MOST_MISSES, MISS_SECONDS):
        return unlisted(render(request, "429.html", status=429))
    return unlisted(render(request, "link_missing.html", status=404))


def client_address(request: HttpRequest) -> str:
    """Return the caller's address; proxies are believed as TRUSTED_PROXY_COUNT says."""
    return str(get_adapter().get_client_ip(request))


def is_over_limit(key: str, most: int, seconds: int) -> bool:
    """Count one more event, and return whether there were more than `most` without a pause of `seconds`."""
    events = cache.get(key, 0) + 1
    cache.set(key, events, seconds)
    return bool(events > most)


def unlisted(answer: HttpResponse) -> HttpResponse:
    """Keep an answer out of search engines and referrers."""
    answer.headers["X-Robots-Tag"] = "noindex, nofollow"
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


def link_address(request: HttpRequest, route: str, secret: str) -> str:
    """Return the whole address of a link, as people send it to others."""
    path = reverse(route, args=[secret])
    return f"{settings.PUBLIC_URL}{path}" if settings.PUBLIC_URL else request.build_absolute_uri(path)
