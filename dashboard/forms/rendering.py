"""The renderer of forms: Django's Jinja2 templates write the controls, in a third of the time.

A form of settings has forty fields, most of which nobody has changed; a field is written once per state.
"""

from __future__ import annotations

from typing import Any

from django.forms import BoundField, CheckboxInput, NumberInput, Select
from django.forms.renderers import Jinja2, TemplatesSetting
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import get_language

WIDGETS = "django/forms/widgets/"
FIELD = "django/forms/field.html"
# Settings, not texts that people wrote.
KEPT_WIDGETS = (NumberInput, CheckboxInput, Select)
MOST_KEPT = 1000


class Renderer(TemplatesSetting):
    """Writes controls by Django's own templates, fields and errors by those of this project."""

    def __init__(self) -> None:
        self.controls = Jinja2()
        self.kept: dict[str, SafeString] = {}

    def render(self, template_name: str, context: dict[str, Any], request: Any = None) -> SafeString:
        """Return the HTML of a control or a form."""
        state = field_state(context["field"]) if template_name == FIELD else ""
        # Asked once: another thread may clear it meanwhile.
        kept = self.kept.get(state)
        if kept is not None:
            return kept
        if template_name.startswith(WIDGETS):
            html = self.controls.render(template_name, context, request)
        else:
            html = super().render(template_name, context, request)
        safe: SafeString = mark_safe(html)  # noqa: S308 - a rendered template
        if state:
            if len(self.kept) >= MOST_KEPT:
                self.kept.clear()
            self.kept[state] = safe
        return safe


def field_state(bound: BoundField) -> str:
    """Return all that the HTML of a setting depends on; "" for another field, or one with errors."""
    field, widget = bound.field, bound.field.widget
    if type(widget) not in KEPT_WIDGETS or bound.errors:
        return ""
    choices = list(widget.choices) if isinstance(widget, Select) else ()
    texts = (str(bound.label), str(bound.help_text), get_language(), bound.html_name, bound.auto_id)
    flags = (field.required, field.disabled, field.localize, bound.form.use_required_attribute)
    return repr((type(widget), texts, flags, widget.attrs, choices, bound.value()))
