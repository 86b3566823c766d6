"""Tags and the note of a run, and the tag of several runs."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.training.tag import TAG_LETTERS

MOST_TAGS = 20
NOTE_LETTERS = 2000


class TagForm(forms.Form):
    """One tag."""

    tag = forms.CharField(
        max_length=TAG_LETTERS,
        error_messages={
            "required": gettext_lazy("Type a tag first."),
            "max_length": gettext_lazy("A tag has at most %(limit_value)d letters."),
        },
    )

    def clean_tag(self) -> str:
        """Refuse a comma, which separates tags elsewhere."""
        tag = str(self.cleaned_data["tag"])
        if "," in tag:
            raise forms.ValidationError(_("A tag has no comma. Add one tag at a time."))
        return tag


class RunNotesForm(forms.Form):
    """All tags of a run, separated by commas, and its note."""

    tags = forms.CharField(
        label=gettext_lazy("Tags"),
        required=False,
        max_length=MOST_TAGS * (TAG_LETTERS + 2),
        help_text=gettext_lazy("Separated by commas, for example: baseline, for the customer."),
    )
    note = forms.CharField(
        label=gettext_lazy("Note"),
        required=False,
        max_length=NOTE_LETTERS,
        widget=forms.Textarea(attrs={"rows": 3}),
    )

    def clean_tags(self) -> list[str]:
        """Return the names, each once."""
        return clean_tag_names(str(self.cleaned_data["tags"]).split(","))


def clean_tag_names(names: list[Any]) -> list[str]:
    """Return tag names without blanks around them, each once. Raises ValidationError."""
    found = list(dict.fromkeys(" ".join(str(name).split()) for name in names))
    found = [name for name in found if name]
    long = next((name for name in found if len(name) > TAG_LETTERS), None)
    if long:
        text = _("The tag “%(tag)s” is too long. A tag has at most %(most)d letters.")
        raise forms.ValidationError(text % {"tag": f"{long[:20]}…", "most": TAG_LETTERS})
    if len(found) > MOST_TAGS:
        raise forms.ValidationError(_("A run has at most %(most)d tags.") % {"most": MOST_TAGS})
    return found
