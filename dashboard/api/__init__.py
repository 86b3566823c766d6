"""The API below /api/v1: what the pages do, for programs. One module per object, one function per verb.

Tokens, paces, paging and refusals are the same everywhere. Its description, OpenAPI 3.1, is at
/api/v1/openapi.json and /api/v1/docs. Knows nothing of Celery, the engine or templates.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, re_path
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema
from ninja.operation import Operation
from ninja.parser import Parser
from ninja.types import DictStrAny

from dashboard.api import (
    adapters,
    base_models,
    compute_budgets,
    datasets,
    forecast,
    invitations,
    jobs,
    me,
    memberships,
    refusals,
    studies,
    target_module_configs,
    tokens,
    training_runs,
    workers,
)
from dashboard.api.access import Pace, Token
from dashboard.api.reference import Reference

KEY_HEADER = {
    "in": "header",
    "name": "Idempotency-Key",
    "required": False,
    "schema": {"type": "string", "maxLength": 200},
    "description": (
        "A call repeated with the same key gets the first one's answer and starts nothing; "
        "409 where that answer held a secret, which is not kept."
    ),
}


class Bodies(Parser):
    """JSON bodies. A form without fields, as clients send where there is nothing to say, is no body."""

    def parse_body(self, request: HttpRequest) -> DictStrAny:
        """The value that was sent."""
        is_form = request.content_type in ("multipart/form-data", "application/x-www-form-urlencoded")
        if is_form and not request.POST and not request.FILES:
            return {}
        return super().parse_body(request)


class Api(NinjaAPI):
    """Names operations and routes after object and verb, as the pages are: `training-run-create`."""

    def get_openapi_operation_id(self, operation: Operation) -> str:
        """Object and verb."""
        module, verb = operation.view_func.__module__, operation.view_func.__name__
        plural = module.rpartition(".")[2]
        noun = f"{plural.removesuffix('ies')}y" if plural.endswith("ies") else plural.removesuffix("s")
        return f"{noun}_{verb}".replace("_", "-")

    def get_operation_url_name(self, operation: Operation, router: Any) -> str:
        """One name per address: creating shares the address of the list."""
        return self.get_openapi_operation_id(operation).replace("-create", "-index")

    def get_openapi_schema(self, **options: Any) -> OpenAPISchema:
        """The description, with the header that every POST honours."""
        document = super().get_openapi_schema(**options)
        for methods in document["paths"].values():
            if "post" in methods:
                methods["post"]["parameters"].append(KEY_HEADER)
        return document


api = Api(
    title="Graftworks API",
    version="1",
    description=(
        "Fine-tune LoRA adapters. Send a token of your project with every call: "
        "`Authorization: Bearer gw_…`. "
        "Whatever starts work answers 202 with the object; look at it again until its `state` is final. "
        "A POST with an `Idempotency-Key` header can be repeated safely."
    ),
    docs=Reference(),
    parser=Bodies(),
    urls_namespace="api",
    auth=Token(),
    throttle=[Pace(reads=True), Pace(reads=False)],
)
refusals.install(api)
api.add_router("/me", me.router, tags=["Token"])
api.add_router("/base-models", base_models.router, tags=["Base models"])
api.add_router("/target-module-configs", target_module_configs.router, tags=["Target modules"])
api.add_router("/datasets", datasets.router, tags=["Datasets"])
api.add_router("/runs", training_runs.router, tags=["Runs"])
api.add_router("/forecast", forecast.router, tags=["Runs"])
api.add_router("/studies", studies.router, tags=["Studies"])
api.add_router("/adapters", adapters.router, tags=["Adapters"])
api.add_router("/jobs", jobs.router, tags=["Queue"])
api.add_router("/workers", workers.router, tags=["Queue"])
api.add_router("/compute-budget", compute_budgets.router, tags=["Compute budget"])
api.add_router("/members", memberships.router, tags=["Team"])
api.add_router("/invitations", invitations.router, tags=["Team"])
api.add_router("/tokens", tokens.router, tags=["Team"])


def in_one_shape(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """The view, with HEAD and OPTIONS wherever there is a GET, and other methods refused in our shape."""

    @functools.wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response = view(request, *args, **kwargs)
        if response.status_code != 405:
            return response
        methods = set(response.headers["Allow"].split(", "))
        if request.method == "HEAD" and "GET" in methods:
            request.method = "GET"
            try:
                return view(request, *args, **kwargs)
            finally:
                # The server leaves the body out.
                request.method = "HEAD"
        methods |= {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
        if request.method == "OPTIONS":
            return HttpResponse(status=204, headers={"Allow": ", ".join(sorted(methods))})
        return refusals.method_not_allowed(methods)

    return answer


def routes() -> tuple[list[Any], str, str]:
    """All routes of the API with their namespace; any other address below it is refused as a call."""
    patterns, application, namespace = api.urls
    for pattern in patterns:
        if isinstance(pattern, URLPattern):
            # The bare address exists for the framework to find its own root, and says nothing.
            root = pattern.name == "api-root"
            pattern.callback = csrf_exempt(refusals.missing) if root else in_one_shape(pattern.callback)
    missing = re_path("", csrf_exempt(refusals.missing), name="missing")
    return [*patterns, missing], application, namespace
