"""What may come to a study after its start: seeds, arms like its reference, one more learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.forms.studies import name_of
from dashboard.forms.study_arms import LONGEST, arm_name
from dashboard.forms.study_costs import cards_of
from dashboard.forms.training_runs import choices
from dashboard.models import ArmPlan, Caller, Study, TargetModuleConfig
from workers.specs import LIMITS

MOST_AT_ONCE = 5


class SeedsForm(forms.Form):
    """How many seeds to add. `first` is the first new one that the page offered: sent twice, it adds once."""

    count = forms.TypedChoiceField(
        label=gettext_lazy("Seeds to add"),
        choices=[(number, str(number)) for number in range(1, MOST_AT_ONCE + 1)],
        coerce=int,
        error_messages=dict.fromkeys(
            ("required", "invalid_choice"),
            gettext_lazy("Choose how many seeds to add, from 1 to %(most)d.") % {"most": MOST_AT_ONCE},
        ),
    )
    first = forms.IntegerField(min_value=0, max_value=2**32 - 1, widget=forms.HiddenInput)

    def seeds(self) -> list[int]:
        """The seeds that were asked for."""
        first = self.cleaned_data["first"]
        return list(range(first, first + self.cleaned_data["count"]))


class RateForm(forms.Form):
    """The arm, and the rate that the page offered: sent twice, it is tried once."""

    arm = forms.CharField(max_length=LONGEST, widget=forms.HiddenInput)
    rate = forms.FloatField(
        min_value=LIMITS["learning_rate"][0],
        max_value=LIMITS["learning_rate"][1],
        widget=forms.HiddenInput,
        error_messages=dict.fromkeys(
            ("required", "invalid", "min_value", "max_value"),
            gettext_lazy("This is no learning rate. Choose the button on the study's page."),
        ),
    )


@dataclass(frozen=True)
class Offer:
    """One choice of target modules: what it is on the study's base model, and why it cannot be an arm."""

    config: TargetModuleConfig
    labels: tuple[str, ...]
    refusal: str
    confirmations: tuple[str, ...]


class ArmsForm(forms.Form):
    """Further arms for a study. Everything but the target modules and the rank is the reference's."""

    configs = forms.TypedMultipleChoiceField(
        label=gettext_lazy("Arms to add"),
        coerce=int,
        error_messages={
            "required": gettext_lazy("Tick what to add."),
            "invalid_choice": gettext_lazy("There is no such preset in this project. Choose another."),
        },
    )
    r = forms.IntegerField(
        label=gettext_lazy("Rank (r)"),
        required=False,
        min_value=int(LIMITS["r"][0]),
        max_value=int(LIMITS["r"][1]),
        widget=forms.NumberInput(attrs={"inputmode": "numeric"}),
        help_text=gettext_lazy("A choice that is an arm already may come again with another rank."),
    )
    confirmed = forms.BooleanField(
        label=gettext_lazy("I accept what the ticked choices leave out or reach besides."), required=False
    )

    def __init__(self, study: Study, caller: Caller, data: Any = None) -> None:
        self.study, self.reference = study, study.reference_arm
        super().__init__(data, initial={"r": self.reference.hyperparameters["r"]})
        self.offered = list(choices(caller, study.project)[2])
        self.fields["configs"].choices = [(one.pk, str(one)) for one in self.offered]  # type: ignore[attr-defined]
        if study.budget == Study.Budget.EQUAL_PARAMETERS:
            # The budget says which rank each arm has.
            del self.fields["r"]

    @property
    def wants_consent(self) -> bool:
        """Whether something that is offered leaves layers out or reaches others besides."""
        return any(offer.confirmations for offer in self.offers)

    @cached_property
    def offers(self) -> list[Offer]:
        """Every choice of the project, as the dialog lists it."""
        return [
            Offer(
                card.config,
                card.resolution.labels,
                card.refusal,
                tuple(f"{card.config}: {sentence}" for sentence in card.resolution.confirmations),
            )
            for card in cards_of(self.offered, self.study.base_model)
        ]

    def plan_of(self, config: TargetModuleConfig, r: int | None = None) -> ArmPlan:
        """The choice as an arm; another rank than the reference's is part of its name.

        A name that an arm of another choice has already, such as an earlier version, gets its version.
        """
        like, learn = self.reference.varied({}), self.reference.varied({"r": r})
        taken = {arm.name for arm in self.study.arms.all() if arm.target_module_config_id != config.pk}
        name, title = (arm_name(text, like, learn) for text in (name_of(config), config.title))
        return ArmPlan(title if name in taken else name, config, learn)

    def clean(self) -> dict[str, Any]:
        """Refuse what is an arm already, under whatever name; a second click is none of it."""
        r = self.cleaned_data.get("r") or self.reference.hyperparameters["r"]
        asked = self.cleaned_data.get("configs", ())
        for arm in self.study.arms.all():
            is_asked = arm.target_module_config_id in asked and arm.name not in self.study.later_arms
            if is_asked and "r" in self.fields and arm.hyperparameters["r"] == r:
                raise forms.ValidationError(
                    _("%(name)s is an arm already with rank %(r)d. Choose another rank for it."),
                    params={"name": arm.name, "r": r},
                )
        return self.cleaned_data

    def plans(self) -> list[ArmPlan]:
        """What is ticked, less what a first click has added already. May raise SpecError."""
        r = self.cleaned_data.get("r")
        asked = [self.plan_of(one, r) for one in self.offered if one.pk in self.cleaned_data["configs"]]
        return [plan for plan in asked if not self.came_later(plan)]

    def came_later(self, plan: ArmPlan) -> bool:
        """Whether just this is there already as an arm that came after the start, under whatever name."""
        later = [arm for arm in self.study.arms.all() if arm.name in self.study.later_arms]
        # Under a budget of equal parameters each arm has the rank that it gets.
        return any(
            arm.target_module_config_id == plan.config.pk
            and ("r" not in self.fields or arm.hyperparameters["r"] == plan.hyperparameters.r)
            for arm in later
        )
