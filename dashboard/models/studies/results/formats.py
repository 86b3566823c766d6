"""The numbers of a study's result in words: differences, intervals, values of the metric, sizes."""

from __future__ import annotations

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from dashboard.models.studies.results.result import AnyStudy, ArmComparison
from workers.statistics.verdicts import Estimate

# Sizes that differ by less count as equal.
SIZE_TOLERANCE = 0.05
# The share of the gain kept is shown where its interval is narrower.
WIDEST_SHARE = 0.5


def format_difference(study: AnyStudy, value: float, *, signed: bool = False) -> str:
    """Return a difference in the metric's unit: points of a hundred, or nats of a loss."""
    if study.lower_is_better:
        return _("%(value)s nats") % {"value": f"{value:+.3f}" if signed else f"{value:.3f}"}
    points = 100 * value
    text = f"{points:+.1f}" if signed else f"{points:.1f}".removesuffix(".0")
    return ngettext("%(value)s point", "%(value)s points", 1 if text == "1" else 2) % {"value": text}


def format_interval(study: AnyStudy, comparison: ArmComparison) -> str:
    scale, digits = (1.0, 3) if study.lower_is_better else (100.0, 1)
    # Adding 0 turns -0.0 into 0.0.
    low, high = (round(scale * end, digits) + 0.0 for end in (comparison.low, comparison.high))
    return _("95 %% interval %(low)s to %(high)s") % {
        "low": f"{low:+.{digits}f}",
        "high": f"{high:+.{digits}f}",
    }


def format_metric(study: AnyStudy, value: float) -> str:
    """Return a value of the metric: percent of a share, or the number of a loss."""
    return f"{value:.3f}" if study.lower_is_better else f"{100 * value:.1f} %"


def format_estimate(study: AnyStudy, estimate: Estimate) -> str:
    mean, low, high = (format_metric(study, value) for value in (estimate.mean, estimate.low, estimate.high))
    if estimate.low == estimate.high:
        return mean
    return f"{mean} ({low} – {high})"


def format_p_value(p: float) -> str:
    """Return p with three digits."""
    return "<\N{NO-BREAK SPACE}0.001" if p < 0.001 else f"{p:.3f}"


def parameter_share(size: int, reference: int) -> str:
    """Return how many parameters an arm has, against the reference: "a tenth of the parameters"."""
    ratio = size / reference if reference else 1.0
    for parts, words in (
        (2, _("half the parameters")),
        (3, _("a third of the parameters")),
        (4, _("a quarter of the parameters")),
        (5, _("a fifth of the parameters")),
        (10, _("a tenth of the parameters")),
    ):
        if abs(ratio * parts - 1) < 0.1:
            return str(words)
    if abs(ratio - 1) < 0.05:
        return _("as many parameters")
    return _("%(percent)s %% of the parameters") % {"percent": f"{100 * ratio:.0f}"}


def format_kept_gain(study: AnyStudy, comparison: ArmComparison | None) -> str:
    """Return how much of the reference's gain an arm kept, as "6.1 of 7.2 points"; "" where it is vague."""
    kept, base = comparison.kept if comparison else None, study.result.base
    reference = study.result.of_arm(study.reference_arm)
    if kept is None or base is None or reference is None or kept.high - kept.low >= WIDEST_SHARE:
        return ""
    gain = abs(reference.metric.mean - base.mean)
    total = format_difference(study, gain)
    if kept.mean >= 1:
        return _("all %(gain)s") % {"gain": total}
    won = kept.mean * gain if study.lower_is_better else 100 * kept.mean * gain
    values = {"won": f"{won:.3f}" if study.lower_is_better else f"{won:.1f}", "gain": total}
    return _("%(won)s of %(gain)s") % values
