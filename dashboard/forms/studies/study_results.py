"""Forms of a finished study: add seeds, decide, share the report, filter rows."""

from __future__ import annotations

from typing import Any

from django import forms
from django.db.models import prefetch_related_objects
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.forms.training.offer import RowField
from dashboard.models import SHARE_DAYS, Study
from dashboard.models.evaluations.answers import BASE, ORDERS

MOST_SEEDS_AT_ONCE = 5


class SeedsForm(forms.Form):
    """The number of seeds to add; `first` is the first offered seed, so a double click adds them once."""

    count = forms.TypedChoiceField(
        label=gettext_lazy("Seeds to add"),
        choices=[(number, str(number)) for number in range(1, MOST_SEEDS_AT_ONCE + 1)],
        coerce=int,
        error_messages=dict.fromkeys(
            ("required", "invalid_choice"),
            gettext_lazy("Choose how many seeds to add, from 1 to %(most)d.") % {"most": MOST_SEEDS_AT_ONCE},
        ),
    )
    first = forms.IntegerField(min_value=0, max_value=2**32 - 1, widget=forms.HiddenInput)

    def seeds(self) -> list[int]:
        first = self.cleaned_data["first"]
        return list(range(first, first + self.cleaned_data["count"]))


class ShareLinkForm(forms.Form):
    """The lifetime of a link, and whether it shows rows of the data."""

    days = forms.TypedChoiceField(
        label=gettext_lazy("Link works for"),
        choices=[(days, gettext_lazy("%(days)d days") % {"days": days}) for days in SHARE_DAYS],
        coerce=int,
        initial=30,
        help_text=gettext_lazy(
            "Anyone with the link can read the report without signing in. It names no user and no project."
        ),
    )
    with_rows = forms.BooleanField(
        label=gettext_lazy("Show rows of the data"),
        required=False,
        help_text=gettext_lazy(
            "Adds test rows with their answers. Leave this off if the data is confidential."
        ),
    )


class AdapterChoice(RowField):
    """An adapter of a study, named by its arm and seed."""

    def label_from_instance(self, obj: Any) -> str:
        """Return the name as in the table of differences."""
        arm, seed = obj.run.study_arm, obj.run.hyperparameters.get("seed")
        return _("%(arm)s, seed %(seed)s") % {"arm": arm.name if arm else obj.name, "seed": seed}


class DecisionForm(forms.Form):
    """The adapter that is shipped, and the reason. An arm's seeds are in order, never by score."""

    adapter = AdapterChoice(
        label=gettext_lazy("Chosen adapter"),
        empty_label=gettext_lazy("Choose one"),
    )
    reason = forms.CharField(
        label=gettext_lazy("Reason"),
        max_length=1000,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text=gettext_lazy("For example: It is as good within our margin, with the smallest file."),
    )

    def __init__(self, study: Study, data: object = None) -> None:
        super().__init__(data)  # type: ignore[arg-type]
        runs = study.final_runs()
        prefetch_related_objects(runs, "adapter")
        self.fields["adapter"].offer(run.adapter for run in runs if hasattr(run, "adapter"))  # type: ignore[attr-defined]


class ItemsForm(forms.Form):
    """Two arms, a seed, and a filter of test rows."""

    SHOW = (
        ("wins", gettext_lazy("the first is better")),
        ("losses", gettext_lazy("the second is better")),
        ("changed", gettext_lazy("they differ")),
        ("same", gettext_lazy("both did the same")),
        ("all", gettext_lazy("all rows")),
    )
    one = forms.ChoiceField(label=gettext_lazy("First arm"))
    other = forms.ChoiceField(label=gettext_lazy("Second arm"))
    seed = forms.TypedChoiceField(label=gettext_lazy("Seed"), coerce=int)
    show = forms.ChoiceField(label=gettext_lazy("Rows where"), choices=SHOW)
    order = forms.ChoiceField(label=gettext_lazy("Order"), choices=list(ORDERS.items()))
    text = forms.CharField(label=gettext_lazy("Rows that contain"), required=False, max_length=200)

    def __init__(self, study: Study, data: Any) -> None:
        results = study.result.arms
        arms = [arm.name for arm in results]
        seeds = [seed for seed in study.seeds if all(seed in arm.seeds for arm in results)]
        others = [name for name in arms if name != study.reference]
        first = {
            "one": (others or arms)[0],
            "other": BASE if not others else study.reference,
            "seed": (seeds or study.seeds)[0],
            "show": "wins",
            "order": next(iter(ORDERS)),
        }
        # Missing parameters have their first value, so that every link works.
        super().__init__({**first, **{name: value for name, value in data.items() if value}})
        names = [(name, name) for name in arms] + [(BASE, _("Base model"))]
        for field in ("one", "other"):
            self.fields[field].choices = names  # type: ignore[attr-defined]
        self.fields["seed"].choices = [(seed, seed) for seed in seeds or study.seeds]  # type: ignore[attr-defined]
