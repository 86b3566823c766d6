"""The OpenAI-compatible API below /v1: a translation of /api/v1 for programs that use OpenAI's clients.

A file is a dataset version or a result of a run, a job is a training run, a model is a base model or an
adapter. Nothing is stored twice. Errors are those of /api/v1; `dashboard.openai_errors` translates them.
"""

from __future__ import annotations

from typing import Any

from dashboard import api as native
from dashboard.api import refusals
from dashboard.api.access import RATE_LIMITS, Token
from dashboard.api.openai import chat, checkpoints, events, files, jobs, models

api = native.Api(
    title="Graftworks, compatible with OpenAI",
    version="1",
    docs_url=None,
    openapi_url=None,
    parser=native.BodyParser(),
    urls_namespace="openai",
    auth=Token(),
    throttle=RATE_LIMITS,
)
refusals.install(api)
api.add_router("/files", files.router)
api.add_router("/fine_tuning/jobs", jobs.router)
api.add_router("/fine_tuning/jobs", events.router)
api.add_router("/fine_tuning/jobs", checkpoints.router)
api.add_router("/models", models.router)
api.add_router("/chat/completions", chat.router)


def routes() -> tuple[list[Any], str, str]:
    """Return the routes below /v1."""
    return native.routes(api)
