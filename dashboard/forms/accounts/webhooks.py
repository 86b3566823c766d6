"""Form to create a webhook."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from django import forms
from django.conf import settings
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from dashboard.models import Project, Webhook
from dashboard.models.jobs.webhook import MOST_WEBHOOKS
from workers.contract.judge import ADDRESS


class WebhookForm(forms.Form):
    """The address of a receiver, on a host that the operator allows."""

    url = forms.CharField(
        label=_("Address"),
        max_length=300,
        help_text=_("https, or http for this machine; without a user, a query or a fragment."),
    )

    def __init__(self, project: Project, data: Any = None) -> None:
        super().__init__(data)
        self.project = project

    def clean_url(self) -> str:
        """Refuse an address in another form, and a host that is not in WEBHOOK_HOSTS."""
        url = str(self.cleaned_data["url"])
        if not ADDRESS.fullmatch(url):
            raise forms.ValidationError(
                gettext("Enter an address such as https://hooks.example.org/graftworks.")
            )
        if urlsplit(url).netloc.lower() not in settings.WEBHOOK_HOSTS:
            raise forms.ValidationError(
                gettext("This host is not allowed. The operator lists allowed hosts in WEBHOOK_HOSTS.")
            )
        return url

    def clean(self) -> dict[str, Any]:
        """Refuse an address that is there already, and too many."""
        values: dict[str, Any] = super().clean() or self.cleaned_data
        webhooks = Webhook.objects.filter(project=self.project)
        if webhooks.count() >= MOST_WEBHOOKS:
            raise forms.ValidationError(
                gettext("A project has at most %(count)d webhooks. Delete one first.")
                % {"count": MOST_WEBHOOKS}
            )
        if webhooks.filter(url=values.get("url", "")).exists():
            self.add_error("url", gettext("This project already has a webhook with this address."))
        return values
