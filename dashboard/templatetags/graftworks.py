"""Template tags and filters: navigation, tables, states, numbers and times.

They read no rows: every value is passed in.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django import template
from django.template.loader_tags import BLOCK_CONTEXT_KEY
from django.templatetags.static import static
from django.urls import reverse
from django.utils import formats, timezone
from django.utils.html import conditional_escape, format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from dashboard.models import Job, State, TrainingRun
from dashboard.models.jobs.compute_use import format_hours
from dashboard.presenters import stages

register = template.Library()

# (route, icon, label, prefixes of the route names that mark the item as active), by block of the navigation.
NAVIGATION = (
    (
        ("home", "home", gettext_lazy("Home"), ("home",)),
        ("dataset-index", "database", gettext_lazy("Datasets"), ("dataset-",)),
        (
            "training-run-create",
            "adjustments-horizontal",
            gettext_lazy("Fine-tune"),
            ("training-run-create", "training-run-presets", "target-module-config-"),
        ),
        ("training-run-index", "activity", gettext_lazy("Runs"), ("training-run-",)),
        ("study-index", "checklist", gettext_lazy("Studies"), ("study-",)),
        ("compare", "git-compare", gettext_lazy("Compare"), ("compare",)),
        ("adapter-index", "puzzle", gettext_lazy("Adapters"), ("adapter-",)),
        ("playground", "message", gettext_lazy("Playground"), ("playground", "prompt-set-", "try-out-link-")),
    ),
    (
        ("queue-index", "server", gettext_lazy("Workers and queue"), ("queue-",)),
        ("team-index", "users", gettext_lazy("Team"), ("team-", "membership-", "invitation-")),
        (
            "settings",
            "settings",
            gettext_lazy("Settings"),
            (
                "settings",
                "health-",
                "storage-",
                "token-",
                "base-model-",
                "compute-budget-",
                "account_change_password",
            ),
        ),
    ),
)

# Labels of a running job, by its kind.
RUNNING_WORDS = {
    Job.Kind.IMPORT: gettext_lazy("Importing"),
    Job.Kind.INSPECT: gettext_lazy("Inspecting"),
    Job.Kind.TRAIN: gettext_lazy("Training"),
    Job.Kind.EVALUATE: gettext_lazy("Evaluating"),
    Job.Kind.JUDGE: gettext_lazy("Judging"),
    Job.Kind.SERVE: gettext_lazy("Answering"),
    Job.Kind.EXPORT: gettext_lazy("Exporting"),
    Job.Kind.PUSH: gettext_lazy("Pushing"),
}
STATE_WORDS = {
    **dict(State.choices),
    "draft": gettext_lazy("Draft"),
    "stopped_early": gettext_lazy("Stopped early, best kept"),
    # Cells of a study's grid only.
    "planned": gettext_lazy("Not started"),
    "left_out": gettext_lazy("Left out"),
    "not_needed": gettext_lazy("Not needed"),
    "trained": gettext_lazy("Trained, not scored yet"),
    "scored": gettext_lazy("Scored"),
}
# State -> (tone, icon). Only failures are red ("bad").
STATE_LOOKS = {
    "draft": ("quiet", "pencil"),
    "planned": ("quiet", "circle-dashed"),
    "left_out": ("quiet", "ban"),
    "not_needed": ("quiet", "circle-check"),
    "trained": ("busy", "check"),
    "scored": ("good", "circle-check"),
    "queued": ("quiet", "clock"),
    "starting": ("busy", "loader"),
    "running": ("busy", "player-play"),
    "finalizing": ("busy", "device-floppy"),
    "cancelling": ("warn", "player-stop"),
    "interrupted": ("warn", "player-pause"),
    "succeeded": ("good", "circle-check"),
    "stopped_early": ("good", "circle-check"),
    "failed": ("bad", "alert-triangle"),
    "cancelled": ("quiet", "player-stop"),
}
# (seconds below which the unit is used, its length in seconds, words). 59.6 minutes round to an hour.
UNITS: tuple[tuple[float, float, str, str], ...] = (
    (3570, 60, "%(count)d minute", "%(count)d minutes"),
    (86000, 3600, "%(count)d hour", "%(count)d hours"),
    (2.6e6, 86400, "%(count)d day", "%(count)d days"),
    (3.2e7, 2.63e6, "%(count)d month", "%(count)d months"),
    (math.inf, 3.156e7, "%(count)d year", "%(count)d years"),
)


@register.simple_tag(takes_context=True)
def repeat_block(context: template.Context, name: str) -> SafeString:
    """Render a block of the page once more; Django's `block` may stand only once in a template."""
    block: SafeString = context.render_context[BLOCK_CONTEXT_KEY].get_block(name).render(context)
    return block


@register.simple_tag(takes_context=True)
def navigation(context: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Return the blocks of the navigation. The item of the current page is active."""
    match = getattr(context.get("request"), "resolver_match", None)
    current = (match.view_name if match else "") or ""
    # The first match only: `training-run-create` belongs to Fine-tune, not to Runs.
    active = next(
        (route for block in NAVIGATION for route, *_, prefixes in block if current.startswith(prefixes)), None
    )
    return [
        [
            {"url": reverse(route), "icon": icon, "label": label, "active": route == active}
            for route, icon, label, _prefixes in block
        ]
        for block in NAVIGATION
    ]


@register.simple_block_tag
def table(
    content: str, css: str = "card-table", *, labelledby: str = "", label: str = "", wrapper: str = ""
) -> SafeString:
    """Return a table that scrolls sideways. A keyboard reaches the scroll area when it has a label."""
    name, value = ("labelledby", labelledby) if labelledby else ("label", label)
    area = format_html(' tabindex="0" role="group" aria-{}="{}"', name, value) if value else ""
    return format_html(
        '<div class="{}"{}><table class="table {}">{}</table></div>',
        f"table-responsive {wrapper}".strip(),
        area,
        css,
        content,
    )


@register.simple_tag
# A page has a hundred of them, and the address of the file never changes.
@functools.lru_cache(maxsize=256)
def icon(name: str, css: str = "") -> SafeString:
    """Return an icon; the text beside it says what it means."""
    return format_html(
        '<svg class="{}" width="20" height="20" aria-hidden="true" focusable="false">'
        '<use href="{}#{}"></use></svg>',
        f"icon {css}".strip(),
        static("img/icons.svg"),
        name,
    )


@register.simple_tag
@functools.lru_cache(maxsize=256)
def status(state: str, kind: str = "", outcome_summary: str = "") -> SafeString:
    """Return a state as word, icon and colour.

    `kind` of the job: train, evaluate, import, inspect; `outcome_summary` where it says more.
    """
    return format_html(
        '<span class="state state-{}">{}<span>{}</span></span>',
        state_tone(state),
        icon(state_icon(state)),
        outcome_summary or state_word(state, kind),
    )


@register.simple_block_tag
def card(content: str, id: str, title: str, *, css: str = "") -> SafeString:
    """Return a section with a heading that labels it."""
    return format_html(
        '<section class="{}" aria-labelledby="{}"><div class="card-header">'
        '<h2 class="card-title" id="{}">{}</h2></div>{}</section>',
        f"card {css}".strip(),
        id,
        id,
        title,
        content,
    )


@register.filter
def state_word(state: str, kind: str = "") -> str:
    """Return the label of a job's or run's state. `kind` is the job's kind."""
    if state == State.RUNNING and kind in RUNNING_WORDS:
        return str(RUNNING_WORDS[Job.Kind(kind)])
    return str(STATE_WORDS.get(state, state))


def state_tone(state: str) -> str:
    """Return the tone of a state: quiet, busy, warn, good or bad."""
    return STATE_LOOKS.get(state, ("quiet", ""))[0]


def state_icon(state: str) -> str:
    return STATE_LOOKS.get(state, ("", "circle-dashed"))[1]


def rounded(value: float, digits: int) -> str:
    """Round and format a number. Django's number_format truncates instead of rounding."""
    return formats.number_format(round(value, digits), digits, force_grouping=True)


@register.filter
def number(value: float | str | None) -> str:
    """Format a number: 1,234; 0.28 M; 134.5 M; 1.24 B; 0.604 (three significant digits); – for none."""
    # Templates pass "" for a missing value.
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    size = abs(value)
    for limit, unit, divisor in ((1e9, "B", 1e9), (1e5, "M", 1e6)):
        if size >= limit:
            scaled = value / divisor
            return f"{rounded(scaled, 2 if abs(scaled) < 10 else 1)} {unit}"
    if isinstance(value, int) or size >= 1000:
        return rounded(value, 0)
    return f"{value:.3g}"


@register.filter
def number_cells(values: Iterable[float | None]) -> SafeString:
    """Return numbers as cells of a table; a table of many runs has hundreds, which are slow in a template."""
    return mark_safe("".join(f'<td class="num">{number(value)}</td>' for value in values))  # noqa: S308


@register.simple_tag
def value_cells(values: Iterable[Any], *, strong: bool = False) -> SafeString:
    """Return values as cells of a table, in bold if they differ."""
    start, end = ("<td><strong>", "</strong></td>") if strong else ("<td>", "</td>")
    return mark_safe("".join(f"{start}{conditional_escape(value)}{end}" for value in values))  # noqa: S308


@register.filter
def percent(share: float | str | None) -> str:
    """Format a share between 0 and 1 as a percentage: 0.2054 -> 20.5 %, 0.0021 -> 0.21 %."""
    if share is None or isinstance(share, str):
        return "–"
    hundredths = 100 * share
    digits = 2 if 0 < abs(hundredths) < 1 else 1
    return f"{rounded(hundredths, digits)} %"


@register.filter
def rate(value: float | str | None) -> str:
    """Format a learning rate without an exponent: 0.0002."""
    if value is None or isinstance(value, str):
        return "–"
    return f"{value:.10f}".rstrip("0")


@register.filter
def filesize(value: float | str | None) -> str:
    """Format bytes: 900 bytes, 1.1 MB. 1 MB is 1,000,000 bytes, as on the Hugging Face Hub."""
    if value is None or isinstance(value, str):
        return "–"
    if value < 1000:
        return ngettext("%(count)d byte", "%(count)d bytes", int(value)) % {"count": int(value)}
    for unit, divisor in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)):
        if value < divisor * 1000 or unit == "TB":
            break
    return f"{rounded(value / divisor, 0 if unit == 'kB' else 1)} {unit}"


@register.filter
def prose(text: str | None) -> SafeString:
    """Render `names` in backticks as code. Everything else is escaped."""
    pieces = str(text or "").split("`")
    if len(pieces) % 2 == 0:  # an unpaired backtick belongs to text from a user
        return format_html("{}", text)
    marked = (("<code>{}</code>" if place % 2 else "{}", piece) for place, piece in enumerate(pieces))
    return format_html_join("", "{}", ((format_html(shape, piece),) for shape, piece in marked))


@register.filter
def duration(value: float | timedelta | str | None) -> str:
    """Format seconds or a timedelta: 0.035 s, 0.4 s, 12 s, 3 min 5 s, 2 h 10 min."""
    if value is None or isinstance(value, str):
        return "–"
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if 0 < seconds < 0.1:
        return _("%(seconds)s s") % {"seconds": f"{seconds:.2g}"}
    if seconds < 10:
        return _("%(seconds)s s") % {"seconds": rounded(seconds, 1 if seconds % 1 else 0)}
    whole = round(seconds)
    if whole < 60:
        return _("%(seconds)d s") % {"seconds": whole}
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        if not rest:
            return _("%(minutes)d min") % {"minutes": minutes}
        return _("%(minutes)d min %(seconds)d s") % {"minutes": minutes, "seconds": rest}
    hours, minutes = divmod(minutes, 60)
    return _("%(hours)d h %(minutes)d min") % {"hours": hours, "minutes": minutes}


@register.filter
def milliseconds(value: float | str | None) -> str:
    """Format milliseconds with three significant digits: 4.12 ms, 204 ms."""
    if value is None or isinstance(value, str):
        return "–"
    return _("%(value)s ms") % {"value": f"{value:.3g}" if value < 999.5 else rounded(value, 0)}


@register.filter
def about(value: float | str | None) -> str:
    """Format forecast seconds with the precision of a forecast: 40 s, 7 min, 2 h 45 min, 20 h, 2 days."""
    if value is None or isinstance(value, str):
        return "–"
    if value < 10:
        return _("%(seconds)d s") % {"seconds": max(1, round(value))}
    units = (
        (60, 5),
        (20 * 60, 60),
        (100 * 60, 300),
        (10 * 3600, 900),
        (48 * 3600, 3600),
        (math.inf, 86400),
    )
    unit = next(unit for limit, unit in units if value < limit)
    whole = max(1, round(value / unit)) * unit
    if whole >= 48 * 3600:
        return ngettext("%(count)d day", "%(count)d days", whole // 86400) % {"count": whole // 86400}
    return _("%(hours)d h") % {"hours": whole // 3600} if whole % 3600 == 0 else duration(whole)


@register.filter
def hours(value: float | str | None) -> str:
    """Format seconds as hours: 0.42 h, 3.1 h, 20 h."""
    return "–" if value is None or isinstance(value, str) else format_hours(value)


@register.filter
def time_left(row: TrainingRun | Job | str | None) -> float | None:
    """Return the seconds until the last step of a run or job; None if unknown or stopping."""
    return None if isinstance(row, str) else stages.time_left(row)


@register.filter
def ago(moment: datetime | None) -> SafeString | str:
    """Render a time relative to now, with the absolute time on hover and in print."""
    if moment is None:
        return "–"
    local = timezone.localtime(moment)
    absolute = local.strftime("%Y-%m-%d %H:%M:%S %Z")
    # Times only, so that nothing is escaped: a page has a hundred of them.
    return mark_safe(  # noqa: S308
        f'<time datetime="{local.isoformat()}" title="{absolute}">'
        f'<span class="d-print-none">{relative(moment - timezone.now())}</span>'
        f'<span class="d-none d-print-inline">{absolute}</span></time>'
    )


def relative(distance: timedelta) -> str:
    """Format a distance from now in the largest unit that fits."""
    seconds = abs(round(distance.total_seconds()))
    ahead = distance > timedelta()
    if seconds < 45:
        return _("in a moment") if ahead else _("just now")
    size, one, many = next(unit[1:] for unit in UNITS if seconds < unit[0])
    count = max(1, round(seconds / size))
    words = ngettext(one, many, count) % {"count": count}
    return _("in %(time)s") % {"time": words} if ahead else _("%(time)s ago") % {"time": words}
