"""Device time by day: sums equal those of the histories, and a closed day is read once."""

from __future__ import annotations

import random
from datetime import timedelta
from zoneinfo import ZoneInfo

import pytest
from django.test import override_settings
from django.utils import timezone

from dashboard.models import DeviceDay, Job, JobEvent, Project, TrainingRun
from dashboard.models.jobs.compute_use import DeviceUsage, Month
from dashboard.models.jobs.device_day import add_usages
from tests.conftest import finish, rewrite


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York"])
def test_days_hold_the_same_seconds_as_the_attempts(zone: str) -> None:
    draw = random.Random(1)
    with override_settings(TIME_ZONE=zone):
        # A month with a change of the clock in both zones.
        first = timezone.localtime().replace(2026, 3, 1, 0, 0, 0, 0, tzinfo=ZoneInfo(zone))
        starts = [first + timedelta(seconds=draw.uniform(-90_000, 31 * 86_400)) for _ in range(200)]
        usages = [
            DeviceUsage(draw.choice([None, 1, 2]), start, start + timedelta(seconds=draw.uniform(0, 200_000)))
            for start in starts
        ]
        month = Month(first, (first + timedelta(days=32)).replace(day=1))
        days = [DeviceDay(begin=first + timedelta(days=number)) for number in range(31)]
        add_usages(days, usages)
    expected = sum(usage.within(month.begin, month.end) for usage in usages)
    assert sum(day.seconds for day in days) == pytest.approx(expected)
    assert sum(sum(day.by_user.values()) for day in days) == pytest.approx(expected)
    assert max(day.seconds for day in days) > 86_400


def test_closed_days_are_stored_and_their_history_is_read_no_more(project: Project, run: TrainingRun) -> None:
    job = finish(run.job)
    begin = Month.current().previous.begin
    rewrite(JobEvent.objects.filter(event="claim"), created_at=begin - timedelta(hours=1))
    rewrite(JobEvent.objects.filter(event="succeed"), created_at=begin + timedelta(hours=1))
    Job.objects.filter(pk=job.pk).update(finished_at=begin + timedelta(hours=1))
    first = DeviceDay.objects.since(project, begin)
    assert [day.seconds for day in first if day.seconds] == [3600.0]
    assert DeviceDay.objects.count() in (len(first) - 1, len(first) - 2)
    JobEvent.objects.filter(event="succeed")._raw_delete("default")
    assert DeviceDay.objects.since(project, begin)[0].seconds == 3600.0


def test_another_project_has_days_of_its_own(
    project: Project, other_project: Project, run: TrainingRun
) -> None:
    finish(run.job)
    rewrite(JobEvent.objects.filter(event="claim"), created_at=timezone.now() - timedelta(seconds=40))
    begin = Month.current().previous.begin
    assert sum(day.seconds for day in DeviceDay.objects.since(other_project, begin)) == 0
    assert sum(day.seconds for day in DeviceDay.objects.since(project, begin)) >= 39
