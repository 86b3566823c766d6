"""Share links: created and revoked by managers, read without an account."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import ShareLink, Study, User
from dashboard.models.accounts.project import digest_of
from dashboard.views.public_links import MOST_MISSES


@pytest.fixture
def secret(study: Study, mara: User) -> str:
    """Return the secret of a link without rows."""
    return ShareLink.issue(study, mara, days=7)[1]


def opened(secret: str, client: Client | None = None) -> tuple[int, str]:
    """Return status and page for a visitor without an account."""
    answer = (client or Client()).get(reverse("share-link-open", args=[secret]))
    return answer.status_code, answer.content.decode()


def test_link_is_shown_once(client: Client, mara: User, study: Study) -> None:
    client.force_login(mara)
    answer = client.post(reverse("share-link-create", args=[study.pk]), {"days": "90"})
    link = ShareLink.objects.get()
    secret = answer.context["address"].rstrip("/").rpartition("/")[2]
    assert (answer.status_code, link.digest) == (201, digest_of(secret))
    assert timedelta(days=89) < link.expires_at - timezone.now() <= timedelta(days=90)
    assert secret not in client.get(study.get_absolute_url()).content.decode()


def test_other_lifetimes_are_refused(client: Client, mara: User, study: Study) -> None:
    client.force_login(mara)
    answer = client.post(reverse("share-link-create", args=[study.pk]), {"days": "8"}, follow=True)
    assert "7, 30 or 90 days" in answer.content.decode()
    assert not ShareLink.objects.exists()


def test_shared_report_contains_no_names(study: Study, secret: str, mara: User, ed: User) -> None:
    status, page = opened(secret)
    assert status == 200
    assert "study-verdict" in page
    for hidden in (study.project.name, mara.email, ed.email, "sample-prompt", "/studies/"):
        assert hidden not in page
    assert ShareLink.objects.get().opens == 1


def test_shared_report_hides_the_project_of_a_signed_in_user(study: Study, secret: str, otto: User) -> None:
    client = Client()
    client.force_login(otto)
    _status, page = opened(secret, client)
    assert "Elsewhere" not in page
    assert otto.email not in page


def test_rows_are_shown_if_the_link_allows_it(study: Study, mara: User) -> None:
    secret = ShareLink.issue(study, mara, days=7, with_rows=True)[1]
    assert "sample-prompt" in opened(secret)[1]


def test_shared_report_is_not_indexed_or_cached(study: Study, secret: str) -> None:
    answer = Client().get(reverse("share-link-open", args=[secret]))
    assert answer.headers["X-Robots-Tag"] == "noindex, nofollow"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert "no-store" in answer.headers["Cache-Control"]
    assert '<meta name="robots" content="noindex, nofollow">' in answer.content.decode()


def test_wrong_expired_and_revoked_links_get_the_same_answer(study: Study, secret: str, mara: User) -> None:
    expired, expired_secret = ShareLink.issue(study, mara, days=7)
    ShareLink.objects.filter(pk=expired.pk).update(expires_at=timezone.now())
    revoked, revoked_secret = ShareLink.issue(study, mara, days=7)
    revoked.revoke()
    answers = [opened(one) for one in ("wrong", secret[:-1], expired_secret, revoked_secret)]
    assert {status for status, _page in answers} == {404}
    assert len({re.sub(r'"X-CSRFToken": "\w+"', "", page) for _status, page in answers}) == 1


def test_revoked_link_gets_404(client: Client, mara: User, study: Study, secret: str) -> None:
    client.force_login(mara)
    button = reverse("share-link-revoke", args=[ShareLink.objects.get().pk])
    for address in (study.get_absolute_url(), reverse("team-index")):
        assert button in client.get(address).content.decode()
    client.post(button)
    assert opened(secret)[0] == 404


def test_guessing_is_rate_limited(study: Study, secret: str) -> None:
    cache.clear()
    found = [opened(f"guess-{number}")[0] for number in range(MOST_MISSES + 1)]
    assert (found[-2], found[-1]) == (404, 429)
    assert opened(secret)[0] == 200
    cache.clear()


def test_log_contains_no_secret(secret: str, caplog: pytest.LogCaptureFixture) -> None:
    ShareLink.objects.update(revoked_at=timezone.now())
    assert opened(secret)[0] == 404
    assert "/shared/…/" in caplog.text
    assert secret not in caplog.text
