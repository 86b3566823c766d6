"""Judge evaluations: jobs that send answers of a study or a run to the judge, and store its verdicts.

The job names the judge, and the user who consented. A verdict is one more score of an item, so it is compared
like any other metric. Knows nothing of HTTP: a worker calls the judge.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

from django.db import models, transaction

from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.evaluation import (
    Evaluation,
    EvaluationQuerySet,
    adapter_evaluation,
    base_evaluation,
)
from dashboard.models.evaluations.evaluation_item import EvaluationItem
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import TERMINAL
from dashboard.models.training.training_run import TrainingRun
from workers.contract.judge import Endpoint, material

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.studies.study import Study

DEFAULT_ROWS, MOST_ROWS = 200, 1000
Scope: TypeAlias = "Study | TrainingRun"


def evaluations_of(scope: Scope) -> EvaluationQuerySet:
    """Return the ended evaluations of a study's arms and base model, or the newest ones of a run."""
    if not isinstance(scope, TrainingRun):
        return Evaluation.objects.of_study(scope)
    newest = adapter_evaluation(scope), base_evaluation(scope)
    return Evaluation.objects.ended().filter(pk__in=[one.pk for one in newest if one])


def pending_items(
    evaluations: models.QuerySet[Evaluation], judge: str, most_rows: int
) -> models.QuerySet[EvaluationItem]:
    """Return the items without a verdict of this judge.

    At most `most_rows` rows are drawn at random: always the same ones, and a larger number adds to them.
    """
    items = EvaluationItem.objects.filter(evaluation__in=evaluations).order_by()
    rows = sorted(set(items.values_list("row", flat=True)))
    drawn = random.Random(0).sample(rows, len(rows))[:most_rows]  # noqa: S311 - a draw, no secret
    same_judge = evaluations.filter(judge_job__spec__judge=judge)
    return items.filter(row__in=drawn).exclude(scores__has_key=JUDGE, evaluation__in=same_judge)


def submit_judge_evaluation(scope: Scope, *, by: User, judge: Endpoint, rows: int) -> Job | None:
    """Queue a job that asks the judge. The caller has the consent of `by` to send the answers.

    Return None while an earlier judge evaluation of the same answers has not ended.
    """
    with transaction.atomic():
        # The lock on the row makes one judge evaluation of two requests at once.
        type(scope).objects.select_for_update().get(pk=scope.pk)
        evaluations = evaluations_of(scope)
        if Job.objects.filter(judged_evaluations__in=evaluations).exclude(state__in=TERMINAL).exists():
            return None
        # Verdicts of two judges do not mix.
        others = evaluations.exclude(judge_job=None).exclude(judge_job__spec__judge=str(judge))
        items = EvaluationItem.objects.filter(evaluation__in=others, scores__has_key=JUDGE)
        write_verdicts(dict.fromkeys(items.values_list("pk", flat=True)))
        spec = {"judge": str(judge), "rows": rows}
        job = Job.objects.submit(Job.Kind.JUDGE, spec, project=scope.project, by=by)
        evaluations.update(judge_job=job)
    return job


def pending_questions(job: Job) -> dict[str, list[int]]:
    """Return each different answer without a verdict as the judge sees it, with the numbers of its items."""
    items = pending_items(job.judged_evaluations.all(), job.spec["judge"], job.spec["rows"])
    questions: dict[str, list[int]] = {}
    fields = ("pk", "system", "prompt", "expected", "output")
    for pk, system, prompt, expected, given in items.values_list(*fields):
        question = f"{system}\n\n{prompt}" if system else prompt
        questions.setdefault(material(question=question, expected=expected, given=given), []).append(pk)
    return questions


def write_verdicts(verdicts: Mapping[int, bool | None]) -> None:
    """Write the verdict of each item by its number, or remove it, and average those of each evaluation."""
    changed = list(EvaluationItem.objects.filter(pk__in=verdicts).only("evaluation", "scores"))
    for item in changed:
        item.scores.pop(JUDGE, None)
        verdict = verdicts[item.pk]
        item.scores |= {} if verdict is None else {JUDGE: float(verdict)}
    EvaluationItem.objects.bulk_update(changed, ["scores"], batch_size=500)
    for evaluation in Evaluation.objects.filter(pk__in={item.evaluation_id for item in changed}):
        scores = evaluation.items.filter(scores__has_key=JUDGE).values_list("scores", flat=True)
        values = [item[JUDGE] for item in scores]
        for name in (JUDGE, "judge_rows"):
            evaluation.metrics.pop(name, None)
        evaluation.metrics |= {JUDGE: fmean(values), "judge_rows": len(values)} if values else {}
        evaluation.save(update_fields=["metrics"])
        evaluation.store_scores()
