"""A link to try models without an account, and a prompt of its visitors."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.forms.adapters import LEAST_BLIND, PromptField, PromptForm
from dashboard.models import TryOutLink
from dashboard.models.evaluations.try_out_link import TRY_OUT_PROMPTS
from workers.contract.chat import ChatSettings

LONGEST_VISITOR_PROMPT = 2000
MOST_VISITOR_TOKENS = 500


class TryOutLinkForm(PromptForm):
    """The playground's models and settings, with the limits of a link to them."""

    prompt = None  # type: ignore[assignment]
    days = forms.TypedChoiceField(
        label=_("Link works for"),
        choices=[(1, _("1 day")), (7, _("7 days")), (30, _("30 days"))],
        coerce=int,
        initial=7,
    )
    most_prompts = forms.TypedChoiceField(
        label=_("Most prompts"),
        choices=[(count, f"{count:,}") for count in TRY_OUT_PROMPTS],
        coerce=int,
        initial=200,
        help_text=_("Of all visitors together. Then the link ends."),
    )
    with_names = forms.BooleanField(
        label=_("Show the names after a vote"),
        required=False,
        help_text=_("Otherwise visitors never see which models they compare."),
    )

    def clean(self) -> dict[str, Any]:
        """Refuse a single model, and answers that are too long for the public."""
        values = super().clean()
        if not self.errors and len({model.adapter for model in self.models}) < LEAST_BLIND:
            raise forms.ValidationError(_("Choose at least two different models, then create the link."))
        if (values.get("max_tokens") or 0) > MOST_VISITOR_TOKENS:
            self.add_error(
                "max_tokens",
                _("Answers behind a link may have at most %(most)d tokens.") % {"most": MOST_VISITOR_TOKENS},
            )
        return values

    def link_values(self) -> dict[str, Any]:
        """Return the settings of the link."""
        names = ("days", "most_prompts", "max_tokens", "temperature", "system", "with_names")
        return {name: self.cleaned_data[name] for name in names}


class VisitorPromptForm(forms.Form):
    """A prompt of a visitor; models and settings are those of the link."""

    prompt = PromptField(
        label=_("Prompt"),
        max_length=LONGEST_VISITOR_PROMPT,
        widget=forms.Textarea(attrs={"rows": 4}),
    )

    def messages(self, link: TryOutLink) -> list[dict[str, str]]:
        """Return the chat of a valid form."""
        first = [{"role": "system", "content": link.system}] if link.system else []
        return [*first, {"role": "user", "content": self.cleaned_data["prompt"]}]


def visitor_settings(link: TryOutLink) -> ChatSettings:
    """Return the settings of a link's answers. Each answer has a seed of its own, unless it is greedy."""
    return ChatSettings(max_tokens=link.max_tokens, temperature=link.temperature, seed=link.prompts)
