"""What people say of single answers without knowing whose they are, and how far the judge says the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models

from dashboard.models.evaluation import Evaluation, EvaluationItem
from dashboard.models.judging import JUDGE
from workers.agreement import Agreement, agreement

if TYPE_CHECKING:
    from dashboard.models.user import User

# So many drawn answers are looked at together for one that is not equal to one already voted on.
DRAWN = 50


class VoteQuerySet(models.QuerySet["Vote"]):
    """Votes on the answers of some evaluations."""

    def on(self, evaluations: models.QuerySet[Evaluation]) -> VoteQuerySet:
        """Those on their items."""
        return self.filter(item__evaluation__in=evaluations)

    def cast_by(self, voter: User, item: EvaluationItem, *, is_right: bool) -> Vote:
        """One person's vote on an item; who votes again changes their mind."""
        vote, _created = self.update_or_create(item=item, voter=voter, defaults={"is_right": is_right})
        return vote

    def next_for(self, voter: User, evaluations: models.QuerySet[Evaluation]) -> EvaluationItem | None:
        """An answer by chance that this person has not voted on, nor on an equal one; None when all is done.

        Where the judge has spoken, its answers come first: only there the two can be compared.
        """
        mine = self.on(evaluations).filter(voter=voter)
        known = set(mine.values_list("item__row", "item__output"))
        items = EvaluationItem.objects.filter(evaluation__in=evaluations).exclude(pk__in=mine.values("item"))
        for some in (items.filter(scores__has_key=JUDGE), items):
            for item in some.order_by("?").iterator(chunk_size=DRAWN):
                if (item.row, item.output) not in known:
                    return item
        return None

    def agreement(self, evaluations: models.QuerySet[Evaluation]) -> Agreement | None:
        """The judge's verdicts against the majority of people's, by answer; even votes do not count."""
        voted = self.on(evaluations).filter(item__scores__has_key=JUDGE)
        told: dict[tuple[int, str], list[bool]] = {}
        judged: dict[tuple[int, str], bool] = {}
        for row, output, scores, is_right in voted.values_list(
            "item__row", "item__output", "item__scores", "is_right"
        ):
            told.setdefault((row, output), []).append(is_right)
            judged[row, output] = bool(scores[JUDGE])
        clear = {answer: votes for answer, votes in told.items() if 2 * sum(votes) != len(votes)}
        return agreement([(2 * sum(votes) > len(votes), judged[answer]) for answer, votes in clear.items()])


class Vote(models.Model):
    """Right or wrong, by one person, on one answer."""

    item = models.ForeignKey(EvaluationItem, models.CASCADE, related_name="votes")
    voter = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    is_right = models.BooleanField()
    created_at = models.DateTimeField(auto_now_add=True)

    objects = VoteQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        constraints = [models.UniqueConstraint(fields=["item", "voter"], name="vote_once_per_item")]

    def __str__(self) -> str:
        return f"{self.voter} on {self.item}"
