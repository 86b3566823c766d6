"""Blind votes of people on single answers, and the judge's agreement with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.conf import settings
from django.db import models

from dashboard.models.catalog.metrics import JUDGE
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.evaluations.evaluation_item import EvaluationItem
from workers.statistics.agreement import Agreement, agreement

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

CHUNK_ROWS = 50


class VoteQuerySet(models.QuerySet["Vote"]):
    """Votes on the answers of some evaluations."""

    def on(self, evaluations: models.QuerySet[Evaluation]) -> VoteQuerySet:
        return self.filter(item__evaluation__in=evaluations)

    def cast(self, voter: User, item: EvaluationItem, *, is_right: bool) -> Vote:
        """Store a user's vote on an item; a second vote replaces the first."""
        vote, _created = self.update_or_create(item=item, voter=voter, defaults={"is_right": is_right})
        return vote

    def next_item(self, voter: User, evaluations: models.QuerySet[Evaluation]) -> EvaluationItem | None:
        """Return a random answer unlike those that the user has voted on; None if there is none.

        Answers with a verdict of the judge come first, because only those can be compared.
        """
        mine = self.on(evaluations).filter(voter=voter)
        known = set(mine.values_list("item__row", "item__output"))
        items = EvaluationItem.objects.filter(evaluation__in=evaluations).exclude(pk__in=mine.values("item"))
        for candidates in (items.filter(scores__has_key=JUDGE), items):
            for item in candidates.order_by("?").iterator(chunk_size=CHUNK_ROWS):
                if (item.row, item.output) not in known:
                    return item
        return None

    def agreement(self, evaluations: models.QuerySet[Evaluation]) -> Agreement | None:
        """Return the judge's agreement with the majority of votes per answer; ties do not count."""
        voted = self.on(evaluations).filter(item__scores__has_key=JUDGE)
        fields = voted.values_list("item__row", "item__output", "item__scores", "is_right")
        balance: dict[tuple[int, str], int] = {}
        judged: dict[tuple[int, str], bool] = {}
        for row, output, scores, is_right in fields:
            balance[row, output] = balance.get((row, output), 0) + (1 if is_right else -1)
            judged[row, output] = bool(scores[JUDGE])
        majorities = {answer: votes > 0 for answer, votes in balance.items() if votes}
        same = sum(judged[answer] == is_right for answer, is_right in majorities.items())
        return agreement(same, len(majorities))


class Vote(models.Model):
    """Right or wrong, by one user, on one answer."""

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
