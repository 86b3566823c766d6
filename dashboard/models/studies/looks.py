"""The looks of a study: after 3, 5, 7 ... and all seeds. An arm decided at a look gets no further seeds.

Between looks its scores stay sealed: all that is kept is the verdict of each decided arm, for the end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from dashboard.models.adapters.adapter import Adapter
from dashboard.models.jobs.compute_use import HOUR, format_hours, used_seconds
from dashboard.models.studies.results.result import compare_study
from workers.statistics.looks import look_sizes

if TYPE_CHECKING:
    from dashboard.models.studies.study import Study
    from dashboard.models.studies.study_arm import StudyArm

DECIDED, TIME_SPENT = "decided", "time_spent"


@dataclass(frozen=True)
class Look:
    """A look after `size` seeds: the verdicts, as JSON, of the arms that it decides, by position."""

    size: int
    decided: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Ending:
    """The end of a study with fewer runs than planned. `reason`: "" if only some arms were decided early."""

    reason: str
    look: int
    looks: int
    seeds: int
    runs_left_out: int
    runs: int


def due_look(study: Study) -> Look | None:
    """Take the look that the next seed waits for; None if no look is planned there or scores are missing."""
    begun = len(study.begun_seeds)
    return take_look(study) if begun in study.look_sizes and begun < len(study.seeds) else None


def take_look(study: Study) -> Look | None:
    """Judge the arms by the seeds so far; None while scores are missing.

    Takes seconds for large studies, so call it without a lock.
    """
    unscored = Adapter.objects.filter(run__in=study.final_runs(), evaluations=None)
    if study.has_open_jobs() or unscored.exists():
        return None
    found = compare_study(study)
    decided = {place: asdict(verdict) for place, verdict in found.items() if verdict.needs_no_seeds}
    return Look(len(study.begun_seeds), decided)


def open_arms(study: Study, look: Look | None = None) -> list[StudyArm]:
    """Return the arms besides the reference that further seeds may decide; `look` is not stored yet."""
    decided = look.decided if look else {}
    return [
        arm
        for arm in study.arms_with_runs()
        if not (arm.is_reference or arm.is_lost or arm.verdict or arm.position in decided)
    ]


def is_time_spent(study: Study, seed: int) -> bool:
    """Return whether a seed of the plan may not start any more; seeds added after an end have no limit."""
    added = [addition["seeds"] for addition in study.additions if addition["ended_with"] is not None]
    if study.max_hours is None or any(seed in seeds for seeds in added):
        return False
    return used_seconds(study.jobs()) >= study.max_hours * HOUR


def ending_of(study: Study) -> Ending | None:
    """Return how a study ended that left out runs of its plan; None before, without any, and after a stop."""
    arms = [arm for arm in study.arm_list if not arm.is_lost]
    left_out = sum(len(study.seeds) - len(arm.final_runs()) for arm in arms)
    if not study.is_over or study.cancelled_at or not left_out:
        return None
    begun, reason = len(study.begun_seeds), ""
    if begun < len(study.seeds):
        reason = TIME_SPENT if open_arms(study) else DECIDED
    looks = look_sizes(begun, study.earlier_ends)
    return Ending(
        reason, len(looks), len(study.look_sizes), begun, left_out, len(study.seeds) * len(study.arm_list)
    )


def look_sentence(study: Study) -> str:
    """State at which look an ended study ended, and which runs it left out; "" if it was looked at once."""
    ending, looks = ending_of(study), len(study.look_sizes)
    if ending is None:
        done = max((one.look for one in study.result.comparisons), default=0)
        return _("Look %(done)d of %(looks)d.") % {"done": done, "looks": looks} if done and looks > 1 else ""
    values = {
        "look": ending.look,
        "looks": ending.looks,
        "count": ending.runs_left_out,
        "runs": ending.runs,
        "seeds": ending.seeds,
        "planned": len(study.seeds),
        "time": format_hours((study.max_hours or 0) * HOUR),
    }
    if ending.reason == TIME_SPENT:
        return (
            _(
                "Ended at look %(look)d of %(looks)d, after %(seeds)d of %(planned)d seeds, because its time "
                "of %(time)s was spent; %(count)d of %(runs)d runs were not started."
            )
            % values
        )
    start = _("Decided at look %(look)d of %(looks)d") if ending.reason else _("Look %(look)d of %(looks)d")
    rest = ngettext(
        "%(count)d of %(runs)d runs was not needed.",
        "%(count)d of %(runs)d runs were not needed.",
        ending.runs_left_out,
    )
    return f"{start}; {rest}" % values
