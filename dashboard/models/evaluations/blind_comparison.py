"""Blind votes of people between two answers to one prompt, and the preference that follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from django.conf import settings
from django.core import signing
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from dashboard.models.accounts.project import Project, ProjectQuerySet, digest_of
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.evaluations.try_out_link import TryOutLink
from workers.statistics.preference import Preference, preference

if TYPE_CHECKING:
    from dashboard.models.accounts.user import User

# How long people may take for a vote. Answers without one are deleted afterwards.
VOTE_WITHIN = timedelta(days=1)
_SIGNER = signing.Signer(salt="blind-comparison")
Pair = tuple[int | None, int | None]  # ids of two adapters; None is the base model


class PairVotes(NamedTuple):
    """The preference between two models, and how many of its votes came through try-out links."""

    preference: Preference
    visitor_votes: int


class BlindComparisonQuerySet(ProjectQuerySet["BlindComparison"]):
    """Pairs of answers, with and without a vote."""

    def open(self) -> BlindComparisonQuerySet:
        """Filter pairs of answers that wait for a vote."""
        return self.filter(vote="", created_at__gt=timezone.now() - VOTE_WITHIN)

    def abandoned(self) -> BlindComparisonQuerySet:
        """Filter pairs of answers on which nobody has voted in time."""
        return self.filter(vote="", created_at__lte=timezone.now() - VOTE_WITHIN)

    def with_token(self, token: str) -> BlindComparison | None:
        """Return the pair of answers that this token was made for."""
        try:
            pk = int(_SIGNER.unsign(token))
        except signing.BadSignature:
            return None
        return self.filter(pk=pk).first()

    def preferences(self, base: BaseModel, pairs: Iterable[Pair]) -> dict[Pair, PairVotes]:
        """Return how often people preferred the first adapter of each pair over the second.

        The votes on one prompt count as one, that of their majority: they are not independent.
        """
        wanted = dict.fromkeys(pairs, 1)
        wanted |= {(second, first): -1 for first, second in list(wanted)}
        ids = {adapter for pair in wanted for adapter in pair} - {None}
        chosen_a = models.Q(adapter_a=None) | models.Q(adapter_a__in=ids)
        chosen_b = models.Q(adapter_b=None) | models.Q(adapter_b__in=ids)
        votes = self.filter(chosen_a, chosen_b, base_model=base).exclude(vote="").order_by()
        balances: dict[Pair, Counter[str]] = {}
        visitors: Counter[Pair] = Counter()
        fields = ("adapter_a", "adapter_b", "prompt_digest", "vote", "link")
        for first, second, prompt, vote, link in votes.values_list(*fields):
            sign = wanted.get((first, second), 0)
            if sign:
                pair = (first, second) if sign > 0 else (second, first)
                balances.setdefault(pair, Counter())[prompt] += sign * {"a": 1, "b": -1}.get(vote, 0)
                visitors[pair] += link is not None
        return {
            pair: PairVotes(preference(list(balance.values())), visitors[pair])
            for pair, balance in balances.items()
        }


class BlindComparison(models.Model):
    """Two answers to one prompt, in the order in which they were shown, and a person's vote on them."""

    class Choice(models.TextChoices):
        A = "a", _("A is better")
        EQUAL = "equal", _("Equal")
        B = "b", _("B is better")

    project = models.ForeignKey(Project, models.CASCADE, related_name="blind_comparisons")
    base_model = models.ForeignKey(BaseModel, models.CASCADE, related_name="+")
    # Without an adapter the base model has answered.
    adapter_a = models.ForeignKey(Adapter, models.CASCADE, null=True, related_name="+")
    adapter_b = models.ForeignKey(Adapter, models.CASCADE, null=True, related_name="+")
    system = models.TextField(blank=True)
    prompt = models.TextField()
    prompt_digest = models.CharField(max_length=64)  # of system prompt and prompt
    answer_a = models.TextField(blank=True)
    answer_b = models.TextField(blank=True)
    vote = models.CharField(max_length=5, choices=Choice.choices, blank=True)
    # A visitor of a try-out link has no account.
    voter = models.ForeignKey(settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+")
    link = models.ForeignKey(TryOutLink, models.CASCADE, null=True, related_name="comparisons")
    created_at = models.DateTimeField(auto_now_add=True)
    voted_at = models.DateTimeField(null=True, blank=True)

    objects = BlindComparisonQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]
        indexes = [models.Index(fields=["project", "base_model", "vote"], name="blind_comparison_votes")]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(vote__in=["", "a", "equal", "b"]), name="blind_comparison_vote_known"
            )
        ]

    def __str__(self) -> str:
        return f"{self.name_a} / {self.name_b}"

    @classmethod
    def record(
        cls,
        project: Project,
        base: BaseModel,
        adapters: Sequence[Adapter | None],
        messages: Sequence[dict[str, str]],
        answers: Sequence[str],
        *,
        voter: User | TryOutLink | None,
    ) -> BlindComparison:
        """Store two answers until somebody votes on them."""
        texts = {message["role"]: message["content"] for message in messages}
        system = texts.get("system", "")
        return cls.objects.create(
            project=project,
            base_model=base,
            adapter_a=adapters[0],
            adapter_b=adapters[1],
            system=system,
            prompt=texts["user"],
            prompt_digest=digest_of(f"{len(system)} {system}{texts['user']}"),
            answer_a=answers[0],
            answer_b=answers[1],
            voter=None if isinstance(voter, TryOutLink) else voter,
            link=voter if isinstance(voter, TryOutLink) else None,
        )

    def token(self) -> str:
        """Return the text by which the person who got the answers votes on them."""
        return _SIGNER.sign(str(self.pk))

    def cast(self, vote: str) -> bool:
        """Store the vote. Return False if there is one: names are shown then, so it stays as it is."""
        values = {"vote": self.Choice(vote), "voted_at": timezone.now()}
        return bool(BlindComparison.objects.open().filter(pk=self.pk).update(**values))

    @property
    def name_a(self) -> str:
        return str(self.adapter_a or _("Base model"))

    @property
    def name_b(self) -> str:
        return str(self.adapter_b or _("Base model"))
