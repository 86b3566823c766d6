"""Try-out links: managers create and revoke them; visitors get no names, and their prompts have limits."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from django.core.cache import cache
from django.test import AsyncClient, Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import Adapter, BlindComparison, Job, TrainingRun, TryOutLink, User
from dashboard.models.accounts.project import digest_of
from dashboard.views.evaluations.try_out_links import ADDRESS_OPEN, ADDRESS_PROMPTS, open_answers
from tests.dashboard.routes import publish_adapter

FORM = {"temperature": "0", "max_tokens": "100", "seed": "1", "days": "7", "most_prompts": "50"}


@pytest.fixture
def adapter(run: TrainingRun) -> Adapter:
    cache.clear()
    return publish_adapter(run)


@pytest.fixture
def secret(adapter: Adapter, mara: User) -> str:
    return issue(adapter, mara)[1]


def issue(adapter: Adapter, by: User, **values: Any) -> tuple[TryOutLink, str]:
    limits = {"days": 7, "most_prompts": 50, "max_tokens": 20} | values
    return TryOutLink.issue(adapter.project, by, adapter.base_model, [None, adapter], **limits)


def create(client: Client, adapter: Adapter, **values: Any) -> Any:
    fields = FORM | {"base": adapter.base_model_id, "column": ["base", adapter.pk]} | values
    return client.post(reverse("try-out-link-create"), fields)


def prompt(secret: str, text: str = "Hello", client: Client | None = None) -> Any:
    """Send a visitor's prompt; the answer is a stream that nobody reads."""
    return (client or Client()).post(
        reverse("try-out-answer", args=[secret]),
        urlencode({"prompt": text}),
        content_type="application/x-www-form-urlencoded",
    )


def compare(link: TryOutLink) -> BlindComparison:
    adapter = link.adapters.get()
    messages = [{"role": "user", "content": "Hello"}]
    return BlindComparison.record(
        link.project, link.base_model, [None, adapter], messages, ["x", "y"], voter=link
    )


def vote(secret: str, comparison: BlindComparison, choice: str = "a") -> Any:
    values = {"comparison": comparison.token(), "vote": choice}
    return Client().post(reverse("try-out-vote", args=[secret]), values)


def test_a_link_is_shown_once_and_stored_as_a_digest(client: Client, mara: User, adapter: Adapter) -> None:
    client.force_login(mara)
    answer = create(client, adapter, system="Be brief.")
    link = TryOutLink.objects.get()
    secret = answer.context["address"].rstrip("/").rpartition("/")[2]
    assert (answer.status_code, link.digest) == (201, digest_of(secret))
    assert (link.with_base, list(link.adapters.all()), link.system) == (True, [adapter], "Be brief.")
    for page in ("playground", "team-index"):
        shown = client.get(reverse(page)).content.decode()
        assert 'id="try-out-links"' in shown
        assert secret not in shown


@pytest.mark.parametrize(
    "wrong",
    [
        {"column": ["base"]},
        {"column": ["base", "base"]},
        {"column": ["base", "999999"]},
        {"days": "8"},
        {"most_prompts": "1000000"},
        {"max_tokens": "501"},
        {"temperature": "3"},
    ],
)
def test_a_wrong_link_is_refused(client: Client, mara: User, adapter: Adapter, wrong: dict[str, Any]) -> None:
    client.force_login(mara)
    answer = create(client, adapter, **wrong)
    assert answer.status_code == 302
    assert answer.url.startswith(f"{reverse('playground')}?base={adapter.base_model_id}&column=base")
    assert not TryOutLink.objects.exists()


def test_the_page_names_nothing(adapter: Adapter, secret: str, mara: User, otto: User) -> None:
    visitor = Client()
    for _signed_in in range(2):
        answer = visitor.get(reverse("try-out-open", args=[secret]))
        page = answer.content.decode()
        for hidden in (str(adapter), adapter.name, adapter.base_model.name, adapter.project.name, mara.email):
            assert hidden not in page
        assert answer.headers["X-Robots-Tag"] == "noindex, nofollow"
        assert "no-store" in answer.headers["Cache-Control"]
        visitor.force_login(otto)


def test_links_that_do_not_work_look_the_same(adapter: Adapter, mara: User) -> None:
    (expired, expired_secret), (revoked, revoked_secret) = issue(adapter, mara), issue(adapter, mara)
    TryOutLink.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    revoked.revoke()
    pages = set()
    for secret in (expired_secret, revoked_secret, "made-up"):
        answer = Client().get(reverse("try-out-open", args=[secret]))
        assert answer.status_code == 404
        pages.add(re.sub('"X-CSRFToken": "[^"]*"', "", answer.content.decode()))
        assert prompt(secret).status_code == 404
        assert vote(secret, compare(revoked)).status_code == 404
    assert len(pages) == 1


def test_only_its_managers_revoke_a_link(
    client: Client, mara: User, ed: User, otto: User, adapter: Adapter
) -> None:
    link, secret = issue(adapter, mara)
    address = reverse("try-out-link-revoke", args=[link.pk])
    for person, status in ((ed, 403), (otto, 404), (mara, 302)):
        client.force_login(person)
        assert client.post(address).status_code == status
    assert Client().get(reverse("try-out-open", args=[secret])).status_code == 404


@pytest.mark.parametrize("text", ["", "x" * 2001])
def test_a_wrong_prompt_is_refused_and_costs_nothing(secret: str, text: str) -> None:
    assert prompt(secret, text).status_code == 422
    assert TryOutLink.objects.get().prompts == 0
    assert not Job.objects.filter(kind=Job.Kind.SERVE).exists()


def test_prompts_per_minute_are_limited(secret: str) -> None:
    found = [prompt(secret).status_code for _number in range(ADDRESS_PROMPTS + 1)]
    assert found == [200] * ADDRESS_PROMPTS + [429]
    assert TryOutLink.objects.get().prompts == ADDRESS_PROMPTS


def test_prompts_per_link_are_limited(secret: str) -> None:
    TryOutLink.objects.update(prompts=49)
    assert [prompt(secret).status_code for _number in range(2)] == [200, 429]


@pytest.mark.django_db(transaction=True)
def test_open_answers_of_a_visitor_are_limited(secret: str) -> None:
    async def send() -> Any:
        address = reverse("try-out-answer", args=[secret])
        return await AsyncClient().post(address, {"prompt": "Hello"})

    async def statuses() -> list[int]:
        answers = []
        for _number in range(ADDRESS_OPEN):
            answers.append(await send())
            assert "state" in await anext(answers[-1].parts)
        refused = await send()
        for answer in answers:
            await answer.parts.aclose()
        return [answer.status_code for answer in [*answers, refused, await send()]]

    assert asyncio.run(statuses()) == [200] * ADDRESS_OPEN + [429, 200]
    assert TryOutLink.objects.get().prompts == ADDRESS_OPEN + 1
    assert not open_answers


def test_a_vote_shows_names_only_if_the_link_allows_it(adapter: Adapter, mara: User) -> None:
    link, secret = issue(adapter, mara)
    assert vote(secret, compare(link)).json() == {"columns": []}
    link, secret = issue(adapter, mara, with_names=True)
    shown = vote(secret, compare(link)).json()["columns"]
    assert shown == [{"label": "Base model"}, {"label": str(adapter)}]


def test_a_vote_is_cast_once_and_through_its_own_link(adapter: Adapter, mara: User) -> None:
    (link, secret), (_other, other_secret) = issue(adapter, mara), issue(adapter, mara)
    comparison = compare(link)
    assert vote(other_secret, comparison).status_code == 422
    assert vote(secret, comparison, "c").status_code == 422
    assert [vote(secret, comparison, choice).status_code for choice in "ab"] == [200, 409]
    comparison.refresh_from_db()
    assert (comparison.vote, comparison.voter, comparison.link) == ("a", None, link)
    votes = BlindComparison.objects.all().preferences(adapter.base_model, [(adapter.pk, None)])
    assert votes[adapter.pk, None].visitor_votes == 1
    assert votes[adapter.pk, None].preference.losses == 1


def test_a_member_cannot_vote_for_a_visitor(client: Client, mara: User, adapter: Adapter) -> None:
    link, _secret = issue(adapter, mara)
    client.force_login(mara)
    values = {"comparison": compare(link).token(), "vote": "a"}
    assert client.post(reverse("playground-vote"), values).status_code == 404


def test_a_link_whose_model_was_deleted_answers_no_prompt(secret: str, adapter: Adapter) -> None:
    adapter.delete()
    assert prompt(secret).status_code == 410
    assert TryOutLink.objects.get().prompts == 0


@pytest.mark.parametrize("name", ["try-out-open", "try-out-answer", "try-out-vote"])
def test_log_contains_no_secret(secret: str, caplog: pytest.LogCaptureFixture, name: str) -> None:
    TryOutLink.objects.update(revoked_at=timezone.now())
    assert Client().post(reverse(name, args=[secret])).status_code in (404, 405)
    assert "/try/…/" in caplog.text
    assert secret not in caplog.text
