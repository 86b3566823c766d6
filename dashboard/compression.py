"""Compression and ETags of pages and JSON, and hashed addresses for all scripts."""

from __future__ import annotations

import hashlib
import re

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.middleware.gzip import GZipMiddleware
from django.middleware.http import ConditionalGetMiddleware
from whitenoise.storage import CompressedManifestStaticFilesStorage

COMPRESSED = ("text/", "application/json", "image/svg")
CSRF_TOKEN = re.compile(rb'("X-CSRFToken": |"csrfmiddlewaretoken" value=)"[A-Za-z0-9]{64}"')


class CompressionMiddleware(GZipMiddleware):
    """Django's middleware, which pads each response at random against BREACH, for text alone.

    Streams pass as they are: their parts must arrive at once, and downloads continue at a byte.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if response.streaming or not response.get("Content-Type", "").startswith(COMPRESSED):
            return response
        return super().process_response(request, response)


class EtagMiddleware(ConditionalGetMiddleware):
    """Django's middleware; the ETags of its pages are the same whatever mask their CSRF tokens have."""

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        kind = response.get("Content-Type", "")
        if isinstance(response, HttpResponse) and kind.startswith("text/html") and self.needs_etag(response):
            # A new sign-in changes the secret, which tokens of earlier pages do not fit.
            secret = str(request.META.get("CSRF_COOKIE", "")).encode()
            text = CSRF_TOKEN.sub(b"", response.content) + secret
            response["ETag"] = f'W/"{hashlib.sha256(text).hexdigest()[:32]}"'
        return super().process_response(request, response)


class StaticFilesStorage(CompressedManifestStaticFilesStorage):  # type: ignore[misc]
    """Also renames the modules that scripts import, so that browsers keep them for a year."""

    support_js_module_import_aggregation = True
