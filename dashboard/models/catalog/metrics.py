"""The metrics of an evaluation and of a training run: name, label, unit, direction and kind of answer.

Every page, form and API schema that names a metric reads it here. How a metric is computed is in
`workers.engine.evaluation.scores` and `workers.engine.evaluation.evaluate`. Knows nothing of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

# Units. A share lies between 0 and 1 and is shown in percent; a loss is a mean per token.
SHARE, NATS, NO_UNIT = "share", "nats", ""
# Kinds of answers as an import report names them; `any` is no kind of its own.
ANY, LABEL, JSON, TEXT, NO_ANSWERS = "any", "label", "json", "text", "none"


@dataclass(frozen=True)
class Metric:
    """One measure. `answer_kind` is the kind of expected answers that it is meant for."""

    name: str
    label: StrOrPromise
    unit: str
    higher_is_better: bool
    answer_kind: str = ANY

    @property
    def is_share(self) -> bool:
        """Return whether values lie between 0 and 1 and are shown in percent."""
        return self.unit == SHARE


LOSS, REGEX, JUDGE = "loss", "regex", "judge"
METRICS = {
    metric.name: metric
    for metric in (
        Metric("exact_match", _("Exact match"), SHARE, higher_is_better=True),
        Metric("accuracy", _("Accuracy (label)"), SHARE, higher_is_better=True, answer_kind=LABEL),
        Metric("field_f1", _("Field F1 (JSON fields)"), SHARE, higher_is_better=True, answer_kind=JSON),
        Metric("json_valid", _("Valid JSON"), SHARE, higher_is_better=True, answer_kind=JSON),
        Metric("contains", _("Contains the expected answer"), SHARE, higher_is_better=True),
        Metric("token_f1", _("Token F1 (word overlap)"), SHARE, higher_is_better=True, answer_kind=TEXT),
        Metric("rouge_l", _("ROUGE-L (longest common part)"), SHARE, higher_is_better=True, answer_kind=TEXT),
        Metric("chrf", _("chrF (character overlap)"), SHARE, higher_is_better=True, answer_kind=TEXT),
        Metric(REGEX, _("Regular expression match"), SHARE, higher_is_better=True),
        Metric(JUDGE, _("Judged correct"), SHARE, higher_is_better=True),
        Metric(LOSS, _("Loss on answers"), NATS, higher_is_better=False),
        Metric("perplexity", _("Perplexity"), NO_UNIT, higher_is_better=False),
        Metric("train/loss", _("Training loss"), NATS, higher_is_better=False),
        Metric("validation/loss", _("Validation loss"), NATS, higher_is_better=False),
        # The share of answer tokens that the model ranks first when it has read all tokens before them.
        Metric("train/token_accuracy", _("Token accuracy (training)"), SHARE, higher_is_better=True),
        Metric("validation/token_accuracy", _("Token accuracy (validation)"), SHARE, higher_is_better=True),
    )
}
# Every item of an evaluation has a score of these, so that two adapters can be compared in pairs.
COMPARABLE = tuple(name for name in METRICS if name != "perplexity" and "/" not in name)
# A judge runs after a study, whose metric is fixed before.
STUDY_METRICS = tuple(name for name in COMPARABLE if name != JUDGE)
# Kind of answers -> the metric to compare by first.
MAIN_METRIC = {LABEL: "exact_match", JSON: "field_f1", TEXT: "token_f1", NO_ANSWERS: LOSS}


def metric_label(name: str) -> str:
    """Return the label of a metric; its name if it is not registered."""
    return str(METRICS[name].label) if name in METRICS else name


def is_lower_better(name: str) -> bool:
    """Return whether smaller values of a metric are better; False for one that is not registered."""
    return name in METRICS and not METRICS[name].higher_is_better


def main_metric(answer_kind: str) -> str:
    """Return the metric to compare by first for this kind of answers."""
    return MAIN_METRIC.get(answer_kind, MAIN_METRIC[TEXT])
