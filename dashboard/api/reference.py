"""The API documentation page: openapi.json as tables, without scripts or external files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from ninja import NinjaAPI
from ninja.openapi.docs import DocsBase

SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True)
class Entry:
    """A parameter, or a field of a body or response."""

    name: str
    kind: str
    required: bool


@dataclass(frozen=True)
class Section:
    """One operation."""

    method: str
    path: str
    text: str
    parameters: list[Entry]
    body: list[Entry]
    status: str
    answer: list[Entry]


class Reference(DocsBase):
    """Renders the documentation page."""

    def render_page(self, request: HttpRequest, api: NinjaAPI, **kwargs: Any) -> HttpResponse:
        document = api.get_openapi_schema(path_params=kwargs)
        parts = groups(document)
        part = request.GET.get("part", "")
        part = part if part in parts else next(iter(parts))
        context = {
            # One at a time: all tables together would be by far the largest page.
            "groups": list(parts),
            "part": part,
            "sections": parts[part],
            "openapi_url": self.get_openapi_url(api, kwargs),
            "root": request.build_absolute_uri(api.get_root_path(kwargs)),
        }
        return render(request, "api/docs.html", context)


def groups(document: dict[str, Any]) -> dict[str, list[Section]]:
    """Return the operations by tag."""
    schemas: dict[str, Any] = document["components"]["schemas"]
    sections: dict[str, list[Section]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            sections.setdefault(operation["tags"][0], []).append(section(method, path, operation, schemas))
    return sections


def section(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> Section:
    """Return an operation with its tables."""
    parameters = [
        Entry(item["name"], kind(item["schema"]), item["required"]) for item in operation["parameters"]
    ]
    responses = operation["responses"]
    status = next((code for code in responses if int(code) < 300), "")
    return Section(
        method=method.upper(),
        path=path,
        text=operation.get("description", ""),
        parameters=parameters,
        body=list(entries(content(operation.get("requestBody", {})), schemas)),
        status=str(status),
        answer=list(entries(content(responses.get(status, {})), schemas)),
    )


def content(part: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a request or response body."""
    for media in part.get("content", {}).values():
        return dict(media.get("schema", {}))
    return {}


def entries(schema: dict[str, Any], schemas: dict[str, Any], prefix: str = "") -> Iterator[Entry]:
    """Yield the values of an object; those of nested objects have dotted names."""
    schema = resolved(schema, schemas)
    required = schema.get("required", [])
    for name, inner in schema.get("properties", {}).items():
        yield Entry(prefix + name, kind(inner), name in required)
        many = "[]" if "items" in inner else ""
        yield from entries(inner.get("items", inner), schemas, f"{prefix}{name}{many}.")


def resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Resolve a reference or a nullable schema."""
    for choice in schema.get("anyOf", []):
        if "$ref" in choice:
            schema = choice
    name = str(schema.get("$ref", "")).removeprefix(SCHEMAS)
    return dict(schemas[name]) if name else schema


def kind(schema: dict[str, Any]) -> str:
    """Return the type of a value in words."""
    if "anyOf" in schema:
        return _(" or ").join(kind(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"])
    if "items" in schema:
        return _("list of %(kind)s") % {"kind": kind(schema["items"])}
    if "$ref" in schema or schema.get("type") == "object":
        return _("object")
    words = {
        "integer": _("whole number"),
        "number": _("number"),
        "boolean": _("true or false"),
        "null": "null",
        "array": _("list"),
    }
    formats = {"binary": _("file"), "date-time": _("time")}
    return formats.get(schema.get("format", "")) or words.get(schema.get("type", ""), _("text"))
