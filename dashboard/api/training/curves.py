"""One curve of several runs, as a comparison draws it."""

from __future__ import annotations

from typing import Annotated, Any

from django.http import HttpResponse
from django.utils.translation import gettext as _
from ninja import Query, Router

from dashboard.api.access import Call
from dashboard.api.answer import write
from dashboard.api.refusals import READING, Refusal, invalid, refuse_others
from dashboard.api.training.schemas import CurvesOut
from dashboard.models import MetricSeries, TrainingRun

router = Router()
MOST_RUNS = 100
# Curves of every run; empty before their first point. Older runs have no token accuracy: the share of
# answer tokens to which the model gives the highest probability.
METRICS = (
    "train/loss",
    "train/token_accuracy",
    "train/learning_rate",
    "train/grad_norm",
    "train/tokens_per_second",
    "validation/loss",
    "validation/token_accuracy",
    "system/memory_bytes",
)
Runs = Annotated[list[Annotated[int, Query(ge=1, le=2**63 - 1)]], Query(min_length=1, max_length=MOST_RUNS)]


@router.get("", response={200: CurvesOut, **READING})
def index(request: Call, name: str, run: Runs) -> HttpResponse:
    """Return the curve `name` of up to 100 runs in one request: `?name=train/loss&run=7&run=8`.

    The curves come in the order of the request, each run once. A run without points has an empty curve.
    """
    refuse_others(list(request.GET), ["name", "run"])
    visible = set(
        TrainingRun.objects.visible_to(request.auth).filter(pk__in=run).values_list("pk", flat=True)
    )
    if unknown := [pk for pk in run if pk not in visible]:
        message = _("There is no run %(run)s in this project.") % {"run": unknown[0]}
        raise Refusal(404, "not_found", message, "run")
    # The database may refuse unprintable characters, and no curve's name has any.
    curves = MetricSeries.objects.points_of(visible, name) if name.isprintable() else {}
    if not curves:
        require_known(name)
    data: list[dict[str, Any]] = [{"run": pk, "points": curves.get(pk, [])} for pk in dict.fromkeys(run)]
    return write({"name": name, "data": data})


def require_known(name: str) -> None:
    """Refuse a curve that no run has."""
    if name not in METRICS:
        message = _("There is no metric of that name. Known: %(names)s.")
        raise invalid("name", message % {"names": ", ".join(METRICS)})
