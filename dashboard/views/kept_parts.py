"""Parts of pages that all readers see alike, rendered once until a row that they show changes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, Generic, TypeVar, cast

from django.core.cache import caches
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from django.utils.translation import get_language

S = TypeVar("S")
T = TypeVar("T")
# A fifth of a page. Before tags it is of templates; in values of rows < is escaped.
INDENTATION, LINE_ENDS = re.compile(r"\n\s+(?=<)"), re.compile(r"\s*\n\s*")


class KeptParts(Generic[S]):
    """Parts of a subject, which is read only for what is not kept.

    `fingerprint` changes with every row that they show. The caller has checked that the reader may see it.
    """

    def __init__(self, request: HttpRequest, fingerprint: str, read: Callable[[], S]) -> None:
        self.request, self.fingerprint, self.read = request, fingerprint, read

    @cached_property
    def subject(self) -> S:
        return self.read()

    def once(self, name: str, compute: Callable[[S], T], *choices: object) -> T:
        """Return a value of the subject; `choices` are those of the reader on which it depends."""
        parts = [self.fingerprint, name, get_language(), *choices]
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        found = caches["rendered"].get(key)
        if found is None:
            found = (compute(self.subject),)
            caches["rendered"].set(key, found)
        return cast("T", found[0])

    def part(
        self,
        template: str,
        context: Callable[[S], dict[str, Any]],
        *choices: object,
        has_texts: bool = True,
    ) -> SafeString:
        """Return a part of a page. It may show nothing of the reader but the address and `choices`.

        Without texts of several lines its own lines need no indentation.
        """

        def render(subject: S) -> str:
            text = render_to_string(template, context(subject), self.request)
            return (INDENTATION if has_texts else LINE_ENDS).sub("\n", text)

        return SafeString(self.once(template, render, self.request.GET.urlencode(), *choices))
