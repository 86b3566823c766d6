"""The rows of the queue's page, written in Python: there are sixty, and a template takes twice as long."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from django import template
from django.urls import reverse
from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from dashboard.models import Job, State
from dashboard.presenters.queue_board import QueueRow
from dashboard.templatetags.graftworks import ago, duration, status

register = template.Library()
# Pieces of rows that are kept, because live pages ask for the same ones every five seconds.
KEPT = 1000
UNKNOWN = '<span class="text-secondary">%s</span>'


@register.simple_tag
def queue_job(row: QueueRow) -> SafeString:
    """Return the name of what a job works for, with the kind of the job."""
    return _job(row.title, row.url, row.job.kind)


@lru_cache(KEPT)
def _job(title: str, url: str, kind: str) -> SafeString:
    name = format_html('<a class="card-link-title" href="{}">{}</a>', url, title) if url else title
    return format_html('{}<div class="text-secondary">{}</div>', name, Job.Kind(kind).label)


@register.simple_tag
def queue_owner(row: QueueRow) -> SafeString:
    """Return the owner of a job and its project, if the reader may see them."""
    if not row.is_readable:
        return SafeString("–")
    return _owner(row.owner, row.job.project.name if row.job.project else "")


@lru_cache(KEPT)
def _owner(owner: str, project: str) -> SafeString:
    place = format_html('<div class="text-secondary">{}</div>', project) if project else ""
    return format_html("{}{}", owner or _("The installation"), place)


@register.simple_tag
def queue_stop(row: QueueRow) -> SafeString:
    """Return the link to the question before a job is stopped; the page opens it as a dialog."""
    return _stop(row.job.pk, row.title)


@lru_cache(KEPT)
def _stop(job: int, title: str) -> SafeString:
    return format_html(
        '<a class="btn btn-sm" href="{0}" hx-get="{0}" hx-target="#stop-job" aria-label="{1}">{2}</a>',
        reverse("queue-cancel", args=[job]),
        _("Stop %(job)s") % {"job": title},
        _("Stop"),
    )


@register.simple_tag(takes_context=True)
def waiting_row(context: dict[str, Any], row: QueueRow) -> SafeString:
    """Return the row of a waiting job."""
    job = row.job
    starts = row.start.text if row.start else SafeString(UNKNOWN % _("unknown"))
    return format_html(
        labelled(
            '<tr><td data-label="%s"><span class="queue-number">{}</span></td>'
            '<td data-label="%s"><div>{}{}</div></td><td data-label="%s"><div>{}</div></td>'
            '<td data-label="%s">{}</td><td data-label="%s">{}</td><td data-label="%s">{}</td>'
            '<td class="num">{}</td></tr>',
            *(_("Position"), _("Job"), _("Owner"), _("Queued"), _("Starts"), _("Priority")),
        ),
        row.position or "–",
        queue_job(row),
        status(job.state, job.kind) if job.state == State.INTERRUPTED else "",
        queue_owner(row),
        ago(job.created_at),
        starts,
        priority(row, context["csrf_token"]),
        queue_stop(row) if row.may_stop else "",
    )


def priority(row: QueueRow, csrf_token: str) -> SafeString | str:
    """Return the priority of a job, for a manager of its project as a form."""
    job = row.job
    if not row.may_prioritise:
        return str(Job.Priority(job.priority).label)
    head, choices = _priority(job.pk, row.title, job.priority)
    return format_html(
        '{}<input type="hidden" name="csrfmiddlewaretoken" value="{}">{}</form>', head, csrf_token, choices
    )


@lru_cache(KEPT)
def _priority(job: int, title: str, present: int) -> tuple[SafeString, SafeString]:
    """Return the start of the form, and its choice with the button."""
    head = format_html(
        '<form class="inline-form queue-priority" method="post" action="{0}" hx-post="{0}" '
        'hx-trigger="change, submit" hx-target="#board" hx-swap="innerHTML">',
        reverse("queue-prioritise", args=[job]),
    )
    options = (
        (value, SafeString(" selected" if value == present else ""), label)
        for value, label in Job.Priority.choices
    )
    choices = format_html(
        '<select class="form-select form-select-sm" id="priority-{}" name="priority" aria-label="{}">{}'
        '</select><button class="btn btn-sm no-js" type="submit">{}</button>',
        job,
        _("Priority of %(job)s") % {"job": title},
        format_html_join("", '<option value="{}"{}>{}</option>', options),
        _("Set"),
    )
    return head, choices


@register.simple_tag
def finished_row(row: QueueRow) -> SafeString:
    """Return the row of a job that has ended."""
    job = row.job
    return format_html(
        labelled(
            '<tr><td>{}</td><td data-label="%s">{}</td><td data-label="%s"><div>{}</div></td>'
            '<td data-label="%s">{}</td><td data-label="%s">{}</td></tr>',
            *(_("State"), _("Owner"), _("Duration"), _("Ended")),
        ),
        queue_job(row),
        status(job.state, job.kind, row.outcome_summary),
        queue_owner(row),
        duration(row.duration),
        ago(job.finished_at),
    )


@lru_cache(maxsize=8)
def labelled(shape: str, *labels: str) -> str:
    """Return the shape of a row with the labels that its cells have on a narrow screen."""
    return shape % tuple(map(escape, labels))
