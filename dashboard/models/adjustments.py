"""What is changed in a job without being asked: its spec, and the note of it on each of its runs."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _

from dashboard.models.job import Job
from dashboard.models.job_state import LIVE, IllegalMove
from workers.specs import Hyperparameters, from_dict

SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps")


def use_smaller_batches(job: Job, reason: str) -> str:
    """Train every arm with at most half the batch and more accumulation; says so, or "" where it cannot.

    Once per job: a second time would hide that the model is too large. Call it inside a transaction.
    """
    runs = list(job.training_runs.order_by("pk"))
    if any(run.adjustments for run in runs):
        return ""
    specs: list[dict[str, Any]] = job.spec.get("specs", [job.spec])
    said = []
    for run, spec in zip(runs, specs, strict=True):
        before = from_dict(Hyperparameters, spec["hyperparameters"])
        after = before.with_smaller_batch()
        if after is None:
            continue
        spec["hyperparameters"] |= {name: getattr(after, name) for name in SPLIT}
        run.adjustments = [
            {
                "reason": reason,
                "attempt": job.attempt,
                "changes": {name: [getattr(before, name), getattr(after, name)] for name in SPLIT},
            }
        ]
        run.save(update_fields=["adjustments"])
        said.append(_in_words(before, after))
    if said:
        mine = Job.objects.filter(pk=job.pk, attempt=job.attempt, state__in=LIVE)
        if not mine.update(spec=job.spec):
            raise IllegalMove(f"{job} was taken over")
    return " ".join(dict.fromkeys(said))


def _in_words(before: Hyperparameters, after: Hyperparameters) -> str:
    return _(
        "It is tried once more with batches of %(after)d rows instead of %(before)d; "
        "each step still learns from %(rows)d rows."
    ) % {
        "after": after.per_device_train_batch_size,
        "before": before.per_device_train_batch_size,
        "rows": after.rows_per_step,
    }
