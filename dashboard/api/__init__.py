"""The API below /api/v1. One module per object, one function per verb.

Tokens, rate limits, paging and errors work the same everywhere. The OpenAPI 3.1 document is at
/api/v1/openapi.json and /api/v1/docs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import URLPattern, re_path
from django.utils.datastructures import MultiValueDict
from django.views.decorators.csrf import csrf_exempt
from ninja import NinjaAPI
from ninja.openapi.schema import OpenAPISchema
from ninja.operation import Operation
from ninja.parser import Parser
from ninja.types import DictStrAny

from dashboard.api import adapters, exports, pushes, refusals, studies
from dashboard.api.access import RATE_LIMITS, Token
from dashboard.api.accounts import invitations, me, memberships, tokens
from dashboard.api.catalog import base_models, datasets, target_module_configs
from dashboard.api.jobs import compute_budgets, jobs, workers
from dashboard.api.reference import Reference
from dashboard.api.training import curves, forecast, training_runs
from dashboard.gate import require_readable_form

KEY_HEADER = {
    "in": "header",
    "name": "Idempotency-Key",
    "required": False,
    "schema": {"type": "string", "maxLength": 200},
    "description": (
        "A repeated request with the same key returns the result of the first one and starts no new work. "
        "Returns 409 if the first response contained a secret, which is not stored."
    ),
}


class BodyParser(Parser):
    """Parses JSON bodies and forms. An empty form, which some clients send by default, counts as no body."""

    def parse_body(self, request: HttpRequest) -> DictStrAny:
        require_readable_form(request)
        is_form = request.content_type in ("multipart/form-data", "application/x-www-form-urlencoded")
        if is_form and not request.POST and not request.FILES:
            return {}
        return super().parse_body(request)

    def parse_querydict(
        self, data: MultiValueDict[str, Any], list_fields: list[str], request: HttpRequest
    ) -> DictStrAny:
        if data is not request.GET:
            require_readable_form(request)
        return super().parse_querydict(data, list_fields, request)


class Api(NinjaAPI):
    """Names operations and routes by object and verb, like the pages: `training-run-create`."""

    def get_openapi_operation_id(self, operation: Operation) -> str:
        module, verb = operation.view_func.__module__, operation.view_func.__name__
        plural = module.rpartition(".")[2]
        noun = f"{plural.removesuffix('ies')}y" if plural.endswith("ies") else plural.removesuffix("s")
        noun = noun.removesuffix("e") if plural.endswith("shes") else noun
        return f"{noun}_{verb}".replace("_", "-")

    def get_operation_url_name(self, operation: Operation, router: Any) -> str:
        """Return one name per address: `create` shares the address of `index`."""
        return self.get_openapi_operation_id(operation).replace("-create", "-index")

    def get_openapi_schema(self, **_options: Any) -> OpenAPISchema:
        """Return the document, which is the same for everybody and costs a second of a processor."""
        return self.document

    @functools.cached_property
    def document(self) -> OpenAPISchema:
        """The generated document with the header that every POST accepts."""
        document = super().get_openapi_schema()
        for methods in document["paths"].values():
            if "post" in methods:
                methods["post"]["parameters"].append(KEY_HEADER)
        return document


api = Api(
    title="Graftworks API",
    version="1",
    description=(
        "Fine-tune LoRA adapters. Send an API token with every request: "
        "`Authorization: Bearer gw_…`. "
        "Requests that start work return 202 and the object. Poll the object until its `state` is final. "
        "You can safely repeat a POST request that has an `Idempotency-Key` header."
    ),
    docs=Reference(),
    parser=BodyParser(),
    urls_namespace="api",
    auth=Token(),
    throttle=RATE_LIMITS,
)
refusals.install(api)
api.add_router("/me", me.router, tags=["Token"])
api.add_router("/base-models", base_models.router, tags=["Base models"])
api.add_router("/target-module-configs", target_module_configs.router, tags=["Target modules"])
api.add_router("/datasets", datasets.router, tags=["Datasets"])
api.add_router("/runs", training_runs.router, tags=["Runs"])
api.add_router("/curves", curves.router, tags=["Runs"])
api.add_router("/forecast", forecast.router, tags=["Runs"])
api.add_router("/studies", studies.router, tags=["Studies"])
api.add_router("/adapters", adapters.router, tags=["Adapters"])
api.add_router("/exports", exports.router, tags=["Adapters"])
api.add_router("/pushes", pushes.router, tags=["Adapters"])
api.add_router("/jobs", jobs.router, tags=["Queue"])
api.add_router("/workers", workers.router, tags=["Queue"])
api.add_router("/compute-budget", compute_budgets.router, tags=["Compute budget"])
api.add_router("/members", memberships.router, tags=["Team"])
api.add_router("/invitations", invitations.router, tags=["Team"])
api.add_router("/tokens", tokens.router, tags=["Team"])


def with_uniform_methods(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Answer HEAD and OPTIONS for every GET, and refuse other methods in the API's error format."""

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
                # The server omits the body.
                request.method = "HEAD"
        methods |= {"HEAD", "OPTIONS"} if "GET" in methods else {"OPTIONS"}
        if request.method == "OPTIONS":
            return HttpResponse(status=204, headers={"Allow": ", ".join(sorted(methods))})
        return refusals.method_not_allowed(methods)

    return answer


def routes(api: NinjaAPI = api) -> tuple[list[Any], str, str]:
    """Return the routes of an API with their namespace, and a 404 in its format for all other addresses."""
    patterns, application, namespace = api.urls
    for pattern in patterns:
        if isinstance(pattern, URLPattern):
            # Ninja resolves its root address by this name; it has no content.
            root = pattern.name == "api-root"
            pattern.callback = (
                csrf_exempt(refusals.missing) if root else with_uniform_methods(pattern.callback)
            )
    missing = re_path("", csrf_exempt(refusals.missing), name="missing")
    return [*patterns, missing], application, namespace
