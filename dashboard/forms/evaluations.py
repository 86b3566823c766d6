"""The consent to send answers to the judge, and a vote on one answer."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from dashboard.models.evaluations.evaluation import EvaluationQuerySet
from dashboard.models.evaluations.judge_evaluation import DEFAULT_ROWS, MOST_ROWS, pending_items
from workers.contract.judge import Endpoint


class JudgeForm(forms.Form):
    """The number of test rows to send, and the consent without which nothing is sent."""

    rows = forms.IntegerField(
        label=gettext_lazy("Maximum test rows"),
        min_value=1,
        max_value=MOST_ROWS,
        initial=DEFAULT_ROWS,
        help_text=gettext_lazy(
            "A random sample of the test rows. It stays the same, and a larger number adds rows to it."
        ),
    )
    agreed = forms.BooleanField(
        error_messages={"required": gettext_lazy("Nothing is sent unless you allow it here.")}
    )

    def __init__(self, evaluations: EvaluationQuerySet, judge: Endpoint, data: Any = None) -> None:
        super().__init__(data)
        self.evaluations, self.judge = evaluations, judge
        self.fields["agreed"].label = _("These rows and answers may be sent to %(host)s") % {
            "host": judge.host
        }

    def clean_rows(self) -> int:
        """Refuse rows whose answers all have a verdict."""
        rows = int(self.cleaned_data["rows"])
        if not pending_items(self.evaluations, str(self.judge), rows).exists():
            raise forms.ValidationError(
                _("All answers to these rows have a verdict. Enter a larger number."), code="nothing_pending"
            )
        return rows


class VoteForm(forms.Form):
    """A vote on one answer."""

    item = forms.IntegerField(min_value=1, max_value=2**63 - 1)
    verdict = forms.ChoiceField(choices=[("right", gettext_lazy("Right")), ("wrong", gettext_lazy("Wrong"))])
