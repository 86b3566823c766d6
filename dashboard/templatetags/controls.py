"""Form controls, and dialogs that ask before an act."""

from __future__ import annotations

from typing import Any

from django import template
from django.forms import BoundField
from django.forms.boundfield import BoundWidget
from django.forms.widgets import CheckboxInput, CheckboxSelectMultiple, FileInput, RadioSelect, Select
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

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


@register.simple_tag
def confirm_buttons(label: str, *, tone: str, safe: str = "") -> SafeString:
    """Return the end of a form in a dialog: the safe choice, which has the focus, and the act."""
    return format_html(
        '<div class="confirm-buttons"><button class="btn" type="submit" formmethod="dialog" formnovalidate '
        'autofocus>{}</button><button class="btn btn-{}" type="submit">{}</button></div>',
        safe or _("Cancel"),
        tone,
        label,
    )


@register.simple_tag(takes_context=True)
def confirm(
    context: dict[str, Any],
    id: str,
    *,
    action: str,
    title: str,
    label: str,
    lost: str = "",
    kept: str = "",
    safe: str = "",
    name: str = "",
    value: str = "",
    pk: object = "",
) -> SafeString:
    """Return a native dialog before a destructive act; the safe choice has the focus.

    `action`: the address that is posted to. `lost` and `kept`: what is lost and what stays. `label`: the act.
    `pk` ends the id. Its opener: <button type="button" commandfor="ID" command="show-modal">.
    """
    key = f"{id}{pk}"
    return format_html(
        '<dialog class="confirm" id="{}" aria-labelledby="{}-title"><form method="post" action="{}">'
        '<input type="hidden" name="csrfmiddlewaretoken" value="{}">{}'
        '<h2 class="confirm-title" id="{}-title">{}</h2>{}{}{}</form></dialog>',
        key,
        key,
        action,
        context["csrf_token"],
        format_html('<input type="hidden" name="{}" value="{}">', name, value) if name and value else "",
        key,
        title,
        format_html("<p>{}</p>", lost) if lost else "",
        format_html('<p class="text-secondary">{}</p>', kept) if kept else "",
        confirm_buttons(label, tone="danger", safe=safe),
    )
