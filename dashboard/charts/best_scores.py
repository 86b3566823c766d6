"""The best score so far on each dataset, over the days: every run that set a new best is a point."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from django.core.cache import cache
from django.db.models import Count, F, Max, Min, Window
from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard.models import DatasetVersion, Project, RunScore
from dashboard.models.catalog.metrics import METRICS

# More lines cannot be told apart.
DATASETS_SHOWN = 5
DAY = timedelta(days=1)
CACHE_SECONDS = 7 * 86400


def best_scores(project: Project) -> list[dict[str, Any]]:
    """Return the datasets with scores, the newest best first: name, metric, points and the best run.

    Each dataset is measured by the metric that fits its answers. Points are (time, value).
    """
    # Every change of a score writes a new row or deletes one; between changes the history is read once.
    state = RunScore.objects.aggregate(newest=Max("pk"), count=Count("pk"))
    key = f"best-scores-{project.pk}-{state['newest']}-{state['count']}"
    found = cache.get(key)
    if found is None:
        found = read_best_scores(project)
        cache.set(key, found, CACHE_SECONDS)
    return [{**row, "metric": METRICS[row["metric"]]} for row in found]


def read_best_scores(project: Project) -> list[dict[str, Any]]:
    """Return the rows of `best_scores` from the scores of all runs."""
    found: dict[int, dict[str, Any]] = {}
    versions = DatasetVersion.objects.filter(project=project).select_related("dataset")
    by_metric: dict[str, list[int]] = {}
    names = {}
    for version in versions:
        by_metric.setdefault(version.main_metric, []).append(version.pk)
        names[version.dataset_id] = version.dataset.name
    for metric, keys in by_metric.items():
        # In the order of the runs; a row whose value is the best of all before it and its own is a record.
        best = Window(
            (Max if METRICS[metric].higher_is_better else Min)("value"),
            partition_by="run__dataset_version__dataset",
            order_by=["run"],
        )
        scores = RunScore.objects.filter(metric=metric, run__project=project, run__dataset_version__in=keys)
        records = scores.annotate(best=best).filter(value=F("best")).order_by("run")
        fields = ("run__dataset_version__dataset", "run", "run__created_at", "value", "base")
        for dataset, run, at, value, base in records.values_list(*fields):
            one = found.setdefault(dataset, {"name": names[dataset], "metric": metric, "points": []})
            # A run that only equals the best is no record.
            if value != one.get("best"):
                one["points"].append((at, value))
                one |= {"run": run, "best": value, "base": base, "at": at}
    return sorted(found.values(), key=lambda one: one["at"], reverse=True)[:DATASETS_SHOWN]


def charts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a chart of the datasets measured in percent, and one of those measured by a loss.

    A dataset is a line of steps up to today; a chart without one is left out.
    """
    today = timezone.now()
    found: list[dict[str, Any]] = []
    for is_share, unit, most in ((True, _("percent"), 100), (False, _("loss"), None)):
        series = [
            {
                "label": row["name"],
                "colour": place,
                "stepped": True,
                "points": [
                    (day(at), round(100 * value, 2) if is_share else round(value, 4))
                    for at, value in [*row["points"], (today, row["best"])]
                ],
            }
            for place, row in enumerate(rows)
            if row["metric"].is_share == is_share
        ]
        if series:
            name = f"best-{len(found) + 1}"
            curves = {"series": series}
            found.append({"name": name, "data": f"{name}-data", "unit": unit, "most": most, "curves": curves})
    return found


def day(at: datetime) -> float:
    """Return the days since 1970."""
    return round(at.timestamp() / DAY.total_seconds(), 2)


def finding(rows: list[dict[str, Any]], since: datetime) -> str:
    """Return how many datasets have a new best since then, as the title of the chart."""
    new = [row for row in rows if row["at"] >= since]
    fresh = [row["name"] for row in new if len(row["points"]) > 1]
    if not fresh and new:
        return _("First scores this month, and no best score to compare them with")
    if not fresh:
        return _("No new best score this month")
    if len(fresh) == 1:
        return _("New best score this month on %(name)s") % {"name": fresh[0]}
    return _("New best scores this month on %(count)d datasets") % {"count": len(fresh)}
