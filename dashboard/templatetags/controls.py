"""Filters for the controls of forms."""

from __future__ import annotations

from django import template
from django.forms import BoundField
from django.forms.boundfield import BoundWidget
from django.forms.widgets import CheckboxInput, CheckboxSelectMultiple, FileInput, RadioSelect, Select
from django.utils.safestring import SafeString

register = template.Library()


@register.filter
def control_kind(field: BoundField) -> str:
    """Return the layout of a form field: check, choices, select, file or input."""
    widget = field.field.widget
    for kind, classes in (
        ("check", CheckboxInput),
        ("choices", (RadioSelect, CheckboxSelectMultiple)),
        ("select", Select),
        ("file", FileInput),
    ):
        if isinstance(widget, classes):  # type: ignore[arg-type]
            return kind
    return "input"


@register.filter
def control(field: BoundField) -> SafeString:
    """Render the field's widget with its CSS classes."""
    css = {"check": "form-check-input", "select": "form-select"}.get(control_kind(field), "form-control")
    own = field.field.widget.attrs.get("class", "")
    wrong = "is-invalid" if field.errors else ""
    return field.as_widget(attrs={"class": " ".join(part for part in (css, own, wrong) if part)})


@register.filter
def option_control(option: BoundWidget) -> SafeString:
    """Render one radio button or check box of a group."""
    option.data["attrs"]["class"] = "form-check-input"
    return option.tag()
