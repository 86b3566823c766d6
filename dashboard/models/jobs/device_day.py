"""Device time by day: what a project's trainings and evaluations used, stored once a day is over.

A closed day never changes, because histories are append-only; the hours of today are read from them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from django.db import OperationalError, models, transaction
from django.utils import timezone

from dashboard.models.accounts.project import Project, ProjectQuerySet
from dashboard.models.jobs.compute_use import DeviceUsage, device_usage

# An event may be committed a little after its time.
CLOSED_AFTER = timedelta(hours=1)


class DeviceDayQuerySet(ProjectQuerySet["DeviceDay"]):
    """Days of a project."""

    def since(self, project: Project, begin: datetime) -> list[DeviceDay]:
        """Return the days from `begin`, a local midnight, up to now; store those that have closed."""
        known = {day.begin: day for day in self.filter(project=project, begin__gte=begin)}
        now, missing = timezone.now(), []
        days = []
        while begin <= now:
            day = known.get(begin)
            if day is None:
                missing.append(day := DeviceDay(project=project, begin=begin))
            days.append(day)
            begin += timedelta(days=1)
        if missing:
            add_usages(missing, device_usage(project, missing[0].begin))
            closed = [day for day in missing if day.end + CLOSED_AFTER <= now]
            if closed:
                # A read must not fail because another process holds SQLite's write lock.
                with suppress(OperationalError), transaction.atomic():
                    self.bulk_create(closed, ignore_conflicts=True)
        return days


class DeviceDay(models.Model):
    """The device seconds of a project on one day of the installation's time zone, in all and by user."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="device_days")
    begin = models.DateTimeField()
    seconds = models.FloatField(default=0.0)
    # Id of the job's user -> seconds; "" for jobs without one.
    by_user = models.JSONField(default=dict)

    objects = DeviceDayQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "begin"], name="device_day_once")]

    def __str__(self) -> str:
        return f"{self.project} on {self.begin:%Y-%m-%d}"

    @property
    def end(self) -> datetime:
        # In local time, where a day may have 23 or 25 hours.
        return timezone.localtime(self.begin) + timedelta(days=1)


def add_usages(days: Sequence[DeviceDay], usages: Iterable[DeviceUsage]) -> None:
    """Add each attempt to the days that it touches; days are in order."""
    begins, ends = [day.begin for day in days], [day.end for day in days]
    for usage in usages:
        user = str(usage.user or "")
        for place in range(max(0, bisect_right(begins, usage.begin) - 1), bisect_right(begins, usage.end)):
            seconds = usage.within(begins[place], ends[place])
            days[place].seconds += seconds
            days[place].by_user[user] = days[place].by_user.get(user, 0.0) + seconds


def usage_by_user(days: Iterable[DeviceDay]) -> list[tuple[int | None, float]]:
    """Return (user id, seconds), most first."""
    sums: Counter[str] = Counter()
    for day in days:
        sums.update(day.by_user)
    return [(int(user) if user else None, seconds) for user, seconds in sums.most_common() if seconds]
