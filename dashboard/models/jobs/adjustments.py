"""Automatic changes of a job's spec, recorded on each of its runs."""

from __future__ import annotations

from typing import Any

from django.utils.translation import gettext as _

from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import LIVE, IllegalMove
from workers.contract.hyperparameters import Hyperparameters
from workers.contract.specs import from_dict

SPLIT = ("per_device_train_batch_size", "gradient_accumulation_steps")


def use_smaller_batches(job: Job, reason: str) -> str:
    """Halve the batch of every arm and raise its accumulation; return a sentence about it, "" if impossible.

    Once per job: a second time would hide that the model is too large. Call it inside a transaction.
    """
    mine = Job.objects.filter(pk=job.pk, attempt=job.attempt, state__in=LIVE)
    # Read from the row, because a transaction that fails is repeated with the same `job`.
    spec = mine.select_for_update().values_list("spec", flat=True).first()
    if spec is None:
        raise IllegalMove(f"{job} was taken over")
    runs = list(job.training_runs.order_by("pk"))
    if any(run.adjustments for run in runs):
        return ""
    arms: list[dict[str, Any]] = spec.get("specs", [spec])
    sentences = []
    for run, arm in zip(runs, arms, strict=True):
        before = from_dict(Hyperparameters, arm["hyperparameters"])
        after = before.with_smaller_batch()
        if after is None:
            continue
        arm["hyperparameters"] |= {name: getattr(after, name) for name in SPLIT}
        run.adjustments = [
            {
                "reason": reason,
                "attempt": job.attempt,
                "changes": {name: [getattr(before, name), getattr(after, name)] for name in SPLIT},
            }
        ]
        run.save(update_fields=["adjustments"])
        sentences.append(_describe(before, after))
    if sentences:
        mine.update(spec=spec)
    return " ".join(dict.fromkeys(sentences))


def _describe(before: Hyperparameters, after: Hyperparameters) -> str:
    return _(
        "It is tried once more with batches of %(after)d rows instead of %(before)d; "
        "each step still learns from %(rows)d rows."
    ) % {
        "after": after.per_device_train_batch_size,
        "before": before.per_device_train_batch_size,
        "rows": after.rows_per_step,
    }
