"""Compression of pages and JSON, and hashed addresses for all scripts."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponseBase
from django.middleware.gzip import GZipMiddleware
from whitenoise.storage import CompressedManifestStaticFilesStorage

COMPRESSED = ("text/", "application/json", "image/svg")


class CompressionMiddleware(GZipMiddleware):
    """Django's middleware, which pads each response at random against BREACH, for text alone.

    Streams pass as they are: their parts must arrive at once, and downloads continue at a byte.
    """

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        if response.streaming or not response.get("Content-Type", "").startswith(COMPRESSED):
            return response
        return super().process_response(request, response)


class StaticFilesStorage(CompressedManifestStaticFilesStorage):  # type: ignore[misc]
    """Also renames the modules that scripts import, so that browsers keep them for a year."""

    support_js_module_import_aggregation = True
