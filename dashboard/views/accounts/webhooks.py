"""Webhooks of a project: list with the last deliveries, create, delete. For managers."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.contrib import messages
from django.db import IntegrityError, transaction
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from dashboard.forms.accounts.webhooks import WebhookForm
from dashboard.gate import Request
from dashboard.models import Role, Webhook, WebhookDelivery

SHOWN_DELIVERIES = 20


@require_GET
def index(request: Request) -> HttpResponse:
    """List the webhooks and their last deliveries."""
    request.project.require(request.user, Role.MANAGER)
    return show(request, WebhookForm(request.project))


@never_cache
@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Create a webhook. Only this response contains its secret."""
    request.project.require(request.user, Role.MANAGER)
    if request.method == "GET":
        return redirect("webhook-index")
    form = WebhookForm(request.project, request.POST)
    if not form.is_valid():
        return show(request, form, status=422)
    try:
        with transaction.atomic():
            webhook = Webhook.objects.create(
                project=request.project, url=form.cleaned_data["url"], created_by=request.user
            )
    except IntegrityError:
        # The same form was sent twice at once.
        form.add_error("url", _("This project already has a webhook with this address."))
        return show(request, form, status=422)
    return show(request, WebhookForm(request.project), status=201, webhook=webhook, secret=webhook.secret())


@require_POST
def delete(request: Request, pk: int) -> HttpResponse:
    """Delete a webhook with its deliveries."""
    webhook = Webhook.objects.fetch(request.user, pk, Role.MANAGER)
    webhook.delete()
    messages.success(request, _("No more events are sent to %(url)s.") % {"url": webhook.url})
    return redirect("webhook-index")


def show(request: Request, form: WebhookForm, status: int = 200, **more: Any) -> HttpResponse:
    """Render the page with this form."""
    deliveries = WebhookDelivery.objects.filter(webhook__project=request.project).select_related(
        "webhook", "run"
    )
    context = {
        "webhooks": Webhook.objects.filter(project=request.project),
        "deliveries": deliveries[:SHOWN_DELIVERIES],
        "hosts": sorted(settings.WEBHOOK_HOSTS),
        "form": form,
        **more,
    }
    return render(request, "accounts/webhooks/index.html", context, status=status)
