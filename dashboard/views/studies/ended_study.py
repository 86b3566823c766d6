"""What all readers of an ended study see alike, rendered once until a row of the study changes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar, cast

from django.core.cache import caches
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString
from django.utils.translation import get_language

from dashboard.models import Study
from dashboard.models.studies.results.fingerprint import fingerprint

T = TypeVar("T")
# A fifth of a page, before tags of templates; in values of rows < is escaped.
INDENTATION = re.compile(r"\n\s+(?=<)")


class EndedStudy:
    """An ended study, fetched with names; its runs and scores are read only for what is not in the cache.

    The caller has checked that the reader may see the study.
    """

    def __init__(self, request: HttpRequest, study: Study) -> None:
        self.request, self.study = request, study
        self.fingerprint = fingerprint(study)

    @cached_property
    def with_facts(self) -> Study:
        """Return the study with everything that its page shows."""
        return Study.objects.with_facts().get(pk=self.study.pk)

    def once(self, name: str, compute: Callable[[Study], T], *choices: object) -> T:
        """Return a value of the study; `choices` are those of the reader on which it depends."""
        parts = [self.fingerprint, name, get_language(), *choices]
        key = hashlib.sha256(repr(parts).encode()).hexdigest()
        found = caches["rendered"].get(key)
        if found is None:
            found = (compute(self.with_facts),)
            caches["rendered"].set(key, found)
        return cast("T", found[0])

    def part(self, template: str, context: Callable[[Study], dict[str, Any]], *choices: object) -> SafeString:
        """Return a part of a page. It may show nothing of the reader but the address and `choices`."""

        def render(study: Study) -> str:
            html = render_to_string(template, {**context(study), "study": study}, self.request)
            return INDENTATION.sub("\n", html)

        query = self.request.GET.urlencode()
        return SafeString(self.once(template, render, query, *choices))
