"""Judge evaluations: answers of a study or a run sent to the judge, by whose consent, and the verdicts.

A verdict is one more score of an item, so it is compared like any other metric. Votes on the same answers are
in `dashboard.models.evaluations.vote`. Knows nothing of HTTP: a worker calls the judge.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, TypeAlias

from django.conf import settings
from django.db import models, transaction

from dashboard.models.accounts.project import Project
from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.evaluation import Evaluation, EvaluationItem, EvaluationQuerySet
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_state import TERMINAL
from dashboard.models.training.training_run import TrainingRun
from workers.contract.judge import PROMPT_SHA256, Endpoint, material

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User
    from dashboard.models.studies.study import Study

DEFAULT_ROWS, MOST_ROWS = 200, 1000
Scope: TypeAlias = "Study | TrainingRun"


def evaluations_of(scope: Scope) -> EvaluationQuerySet:
    """Return the ended evaluations of a study's arms and base model, or the newest ones of a run."""
    if not isinstance(scope, TrainingRun):
        return Evaluation.objects.of_study(scope)
    newest = {evaluation.subject: evaluation.pk for evaluation in scope.evaluations.ended().order_by("pk")}
    return Evaluation.objects.filter(pk__in=newest.values())


def pending_items(
    evaluations: models.QuerySet[Evaluation], model: str, most_rows: int
) -> models.QuerySet[EvaluationItem]:
    """Return the items without a verdict of this model and the present prompt.

    At most `most_rows` rows are drawn at random: always the same ones, and a larger number adds to them.
    """
    items = EvaluationItem.objects.filter(evaluation__in=evaluations).order_by()
    rows = sorted(set(items.values_list("row", flat=True)))
    drawn = random.Random(0).sample(rows, len(rows))[:most_rows]  # noqa: S311 - a draw, no secret
    same_judge = evaluations.filter(by_judge(model))
    return items.filter(row__in=drawn).exclude(scores__has_key=JUDGE, evaluation__in=same_judge)


def by_judge(model: str) -> models.Q:
    """Select the evaluations that this model judges with the present prompt."""
    return models.Q(judge_evaluation__model=model, judge_evaluation__prompt_sha256=PROMPT_SHA256)


def submit_judge_evaluation(scope: Scope, *, by: User, judge: Endpoint, rows: int) -> JudgeEvaluation | None:
    """Queue a job that asks the judge. The caller has the consent of `by` to send the answers.

    Return None while an earlier judge evaluation of the same answers has not ended.
    """
    with transaction.atomic():
        # The lock on the row makes one judge evaluation of two requests at once.
        type(scope).objects.select_for_update().get(pk=scope.pk)
        if scope.judge_evaluations.exclude(job=None).exclude(job__state__in=TERMINAL).exists():
            return None
        evaluations = evaluations_of(scope)
        # Verdicts of two models or prompts do not mix.
        others = evaluations.exclude(judge_evaluation=None).exclude(by_judge(judge.model))
        _write_verdicts(EvaluationItem.objects.filter(evaluation__in=others, scores__has_key=JUDGE), {})
        spec = {"host": judge.host, "model": judge.model, "prompt_sha256": PROMPT_SHA256}
        job = Job.objects.submit(Job.Kind.JUDGE, spec, project=scope.project, by=by)
        judge_evaluation: JudgeEvaluation = scope.judge_evaluations.create(
            project=scope.project, job=job, by=by, rows=rows, **spec
        )
        evaluations.update(judge_evaluation=judge_evaluation)
        judge_evaluation.summarize()
    return judge_evaluation


def _write_verdicts(items: models.QuerySet[EvaluationItem], verdicts: dict[int, float]) -> None:
    """Write the verdict of each item by its number; remove that of an item without a number here."""
    changed = list(items.only("scores"))
    for item in changed:
        item.scores.pop(JUDGE, None)
        item.scores |= {JUDGE: verdicts[item.pk]} if item.pk in verdicts else {}
    EvaluationItem.objects.bulk_update(changed, ["scores"], batch_size=500)


class JudgeEvaluation(models.Model):
    """One job that sends the pending answers of a study or a run to the judge."""

    project = models.ForeignKey(Project, models.CASCADE, related_name="judge_evaluations")
    study = models.ForeignKey(
        "dashboard.Study", models.CASCADE, null=True, blank=True, related_name="judge_evaluations"
    )
    run = models.ForeignKey(
        TrainingRun, models.CASCADE, null=True, blank=True, related_name="judge_evaluations"
    )
    job = models.ForeignKey(Job, models.SET_NULL, null=True, blank=True, related_name="judge_evaluations")
    # The user who consented to sending, and the host that received the rows.
    by = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    host = models.CharField(max_length=255)
    model = models.CharField(max_length=200)
    prompt_sha256 = models.CharField(max_length=64)
    rows = models.PositiveIntegerField()
    # Different answers to be judged, and those with a verdict, over all attempts.
    answers = models.PositiveIntegerField(default=0)
    judged = models.PositiveIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(study=None) ^ models.Q(run=None), name="judge_evaluation_of_study_or_run"
            )
        ]

    def __str__(self) -> str:
        return f"{self.model} on {self.subject}"

    @property
    def subject(self) -> Scope:
        """Return the study or run whose answers are judged."""
        subject = self.study or self.run
        assert subject  # noqa: S101 - the constraint says so
        return subject

    @property
    def is_over(self) -> bool:
        """Return whether no further verdicts will come."""
        return self.job is None or self.job.is_over

    def pending_questions(self) -> dict[str, list[int]]:
        """Return each different answer without a verdict as the judge sees it, with the numbers of its items.

        Counts them into `answers`.
        """
        items = pending_items(Evaluation.objects.filter(judge_evaluation=self), self.model, self.rows)
        questions: dict[str, list[int]] = {}
        for pk, *texts in items.values_list("pk", "prompt", "expected", "output").iterator(chunk_size=500):
            questions.setdefault(material(*texts), []).append(pk)
        self.answers = self.judged + len(questions)
        return questions

    def record(self, verdicts: Sequence[tuple[bool, Sequence[int]]]) -> None:
        """Store verdicts: (is the answer right, numbers of its items)."""
        by_item = {pk: float(is_right) for is_right, items in verdicts for pk in items}
        _write_verdicts(EvaluationItem.objects.filter(pk__in=by_item), by_item)
        self.judged += len(verdicts)
        self.save(update_fields=["answers", "judged"])

    def summarize(self) -> None:
        """Store the share of right answers of each evaluation, and how many answers have a verdict."""
        for evaluation in Evaluation.objects.filter(judge_evaluation=self):
            scores = evaluation.items.filter(scores__has_key=JUDGE).values_list("scores", flat=True)
            values = [item[JUDGE] for item in scores]
            for name in (JUDGE, "judge_rows"):
                evaluation.metrics.pop(name, None)
            if values:
                evaluation.metrics |= {JUDGE: fmean(values), "judge_rows": len(values)}
            evaluation.save(update_fields=["metrics"])
