"""A prompt of the playground that is saved."""

from __future__ import annotations

from django import forms
from django.utils.translation import gettext_lazy as _

from dashboard.forms.adapters import PromptField
from dashboard.models.evaluations.prompt_set import LONGEST_SAVED_PROMPT

TOO_LONG = _("A saved prompt has at most %(limit_value)d characters; this one has %(show_value)d.")


class SavedPromptForm(forms.Form):
    """A prompt with its system prompt, and the name of the set that gets it."""

    # The browser would refuse to send the playground's form, of which these fields are a part.
    use_required_attribute = False

    prompt_set = forms.CharField(
        label=_("Prompt set"),
        max_length=80,
        error_messages={"required": _("Type the name of a prompt set, a new or an existing one.")},
        widget=forms.TextInput(attrs={"list": "prompt-sets", "autocomplete": "off"}),
        help_text=_("An existing name adds to that set; a new one makes a set."),
    )
    system = PromptField(
        required=False, max_length=LONGEST_SAVED_PROMPT, error_messages={"max_length": TOO_LONG}
    )
    prompt = PromptField(
        max_length=LONGEST_SAVED_PROMPT,
        error_messages={"required": _("Type a prompt first."), "max_length": TOO_LONG},
    )
