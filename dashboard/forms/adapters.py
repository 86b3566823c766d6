"""The stage of an adapter, a prompt of the playground, and a vote on blind answers."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import Q
from django.http import QueryDict
from django.utils.translation import gettext_lazy as _

from dashboard.chat_relay import ChatModel
from dashboard.models import Adapter, BaseModel, BlindComparison, Project, User
from dashboard.models.accounts.project import parse_id
from workers.contract.chat import ChatSettings

BASE = "base"  # the column of the base model
MOST_COLUMNS = 4
LEAST_BLIND = 2
LONGEST_PROMPT = 100_000


class StageForm(forms.Form):
    stage = forms.ChoiceField(label=_("Stage"), choices=Adapter.Stage.choices)


class PromptField(forms.CharField):
    """Text for a model, with its white space and with line ends as in a dataset."""

    def __init__(self, **options: Any) -> None:
        super().__init__(strip=False, **options)

    def to_python(self, value: str | None) -> str:
        """Undo the line ends of a browser, which sends CR LF for each."""
        return (super().to_python(value) or "").replace("\r\n", "\n")


class ModelsForm(forms.Form):
    """The models of the playground's columns: `base`, or the number of an adapter of the project on it."""

    base = forms.ModelChoiceField(BaseModel.objects.none(), widget=forms.HiddenInput)

    def __init__(self, data: QueryDict | None, project: Project, user: User) -> None:
        super().__init__(data)
        self.project, self.user = project, user
        bases = BaseModel.objects.visible_to(user).filter(Q(project=None) | Q(project=project))
        field: Any = self.fields["base"]
        field.queryset = bases
        self.models: list[ChatModel] = []

    def clean(self) -> dict[str, Any]:
        """Find the models."""
        values: dict[str, Any] = super().clean() or {}
        base, data = values.get("base"), self.data
        names = data.getlist("column") if isinstance(data, QueryDict) else []
        adapters = Adapter.objects.visible_to(self.user).filter(project=self.project, base_model=base)
        found = {
            str(adapter.pk): adapter for adapter in adapters.filter(pk__in=filter(None, map(parse_id, names)))
        }
        self.models = [
            ChatModel(base, found.get(name)) for name in names if base and (name == BASE or name in found)
        ]
        if base and not (1 <= len(names) <= MOST_COLUMNS and len(self.models) == len(names)):
            raise forms.ValidationError(
                _("Choose up to four models of one base model. One of these is gone.")
            )
        return values


class PromptForm(ModelsForm):
    """A prompt to the models of the playground's columns, with equal settings for all."""

    system = PromptField(
        label=_("System prompt"),
        required=False,
        max_length=LONGEST_PROMPT,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text=_("Instructions that stand before the prompt. Use those of your training data."),
    )
    prompt = PromptField(
        label=_("Prompt"), max_length=LONGEST_PROMPT, widget=forms.Textarea(attrs={"rows": 4})
    )
    temperature = forms.FloatField(
        label=_("Temperature"),
        initial=0,
        min_value=0,
        max_value=2,
        widget=forms.NumberInput(attrs={"step": 0.1}),
        help_text=_(
            "0 always takes the likeliest words. Higher values vary the answer; above 1.2 it rambles."
        ),
    )
    max_tokens = forms.IntegerField(
        label=_("Longest answer, in tokens"),
        initial=200,
        min_value=1,
        max_value=4096,
        help_text=_("100 tokens are about 75 English words."),
    )
    seed = forms.IntegerField(
        label=_("Random seed"),
        initial=42,
        min_value=0,
        max_value=2**31 - 1,
        help_text=_("The same seed and settings give the same answer again."),
    )
    blind = forms.BooleanField(required=False, widget=forms.HiddenInput)
    # Whether the answers begin when no training runs any more.
    wait = forms.BooleanField(required=False, widget=forms.HiddenInput)

    def clean(self) -> dict[str, Any]:
        """Refuse a blind comparison of one model."""
        values = super().clean()
        if values.get("blind") and len({model.adapter for model in self.models}) < LEAST_BLIND:
            raise forms.ValidationError(_("Choose at least two different models to compare blind."))
        return values

    def messages(self) -> list[dict[str, str]]:
        """Return the chat of a valid form."""
        system = self.cleaned_data["system"]
        first = [{"role": "system", "content": system}] if system else []
        return [*first, {"role": "user", "content": self.cleaned_data["prompt"]}]

    def settings(self) -> ChatSettings:
        """Return the settings of a valid form."""
        values = self.cleaned_data
        return ChatSettings(
            max_tokens=values["max_tokens"], temperature=values["temperature"], seed=values["seed"]
        )


class PreferenceForm(forms.Form):
    """The better one of two blind answers, or neither."""

    vote = forms.ChoiceField(choices=BlindComparison.Choice.choices)
