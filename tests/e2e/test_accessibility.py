"""Every page with rows on it, in light and dark, at desk and phone width: none has a serious fault."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from django.conf import settings
from django.urls import URLPattern
from playwright.sync_api import Browser, Page

from dashboard.urls import urlpatterns
from tests.e2e.audit import complaints, faults
from tests.e2e.installation import Api, Installation, Person

pytestmark = pytest.mark.slow

# Routes with a page for people, with what their address needs. {…} is an id of `rows`.
PAGES = {
    "home": "/",
    "account_change_password": "/account/password/",
    "project-create": "/projects/new/",
    "team-index": "/team/",
    "dataset-index": "/datasets/",
    "dataset-create": "/datasets/new/",
    "dataset-detail": "/datasets/{dataset}/",
    "dataset-detail, failed": "/datasets/{bad_dataset}/",
    "dataset-detail, asking": "/datasets/{asking_dataset}/",
    "base-model-index": "/settings/base-models/",
    "base-model-create": "/settings/base-models/new/",
    "base-model-detail": "/settings/base-models/{base_model}/",
    "target-module-config-index": "/target-modules/",
    "target-module-config-create": "/target-modules/new/?from={target_module_config}",
    "target-module-config-detail": "/target-modules/{target_module_config}/",
    "training-run-create": "/fine-tune/",
    "training-run-index": "/runs/",
    "training-run-detail": "/runs/{run}/",
    "training-run-detail, failed": "/runs/{failed_run}/",
    "training-run-detail, stopped": "/runs/{stopped_run}/",
    "training-run-cancel, too late": "/runs/{stopped_run}/cancel/",
    "training-run-judge": "/runs/{run}/judge/",
    "training-run-vote": "/runs/{run}/votes/",
    "study-index": "/studies/",
    "study-create": "/studies/new/?dataset={dataset}",
    "study-detail": "/studies/{study}/",
    "study-detail, stopped": "/studies/{stopped_study}/",
    "study-report": "/studies/{study}/report/",
    "study-items": "/studies/{study}/answers/",
    "study-judge": "/studies/{study}/judge/",
    "study-vote": "/studies/{study}/votes/",
    "compare": "/compare/?runs={run}&runs={stopped_run}",
    "compare, nothing chosen": "/compare/",
    "adapter-index": "/adapters/",
    "adapter-detail": "/adapters/{adapter}/",
    "playground": "/playground/?column=base&column={adapter}",
    "prompt-set-index": "/prompt-sets/",
    "prompt-set-detail": "/prompt-sets/{prompt_set}/?column=base&column={adapter}",
    "adapter-serve": "/adapters/serve/?base={base_model}&adapter={adapter}",
    "queue-index": "/queue/",
    "settings": "/settings/",
    "health-index": "/settings/health/",
    "storage-index": "/settings/storage/",
    "compute-budget-index": "/settings/compute-budget/",
    "token-index": "/settings/tokens/",
    "webhook-index": "/settings/webhooks/",
    "API documentation": "/api/v1/docs",
}
# Pages of people who are not signed in.
ENTRANCES = {
    "account_login": "/sign-in/",
    "account_inactive": "/sign-in/closed/",
    "account_reset_password": "/password-reset/",
    "account_reset_password_done": "/password-reset/sent/",
    "account_reset_password_from_key": "/password-reset/1-none/",
    "account_reset_password_from_key_done": "/password-reset/changed/",
}
# Covered elsewhere, or without a page: pieces of pages, files, streams, what only takes a POST or redirects.
NOT_HERE = {
    *("set-up", "invitation-accept", "health", "account_logout", "account_set_password"),
    *("home-progress", "dataset-progress", "base-model-progress", "queue-board", "project-open"),
    *("training-run-presets", "training-run-forecast", "training-run-progress", "training-run-samples"),
    *("training-run-log", "training-run-stream", "training-run-metrics", "training-run-metrics-csv"),
    *(
        "compare-json",
        "compare-curves",
        "compare-runs",
        "compare-items",
        "saved-view-create",
        "saved-view-delete",
    ),
    *("dataset-report", "compare-csv", "adapter-download", "adapter-stage", "training-run-resume"),
    *("adapter-exports", "adapter-export", "adapter-push", "export-download", "export-delete"),
    *("dataset-sample", "dataset-import-again", "base-model-inspect", "queue-cancel"),
    *("membership-change", "membership-remove", "invitation-create", "invitation-revoke"),
    *("study-arms", "study-plan", "study-grid", "study-cancel", "study-seeds"),
    *("study-score", "training-run-score"),
    *("study-deltas-csv", "study-scores-csv", "study-json", "decision-create"),
    # `test_study.py` looks at it.
    *("share-link-create", "share-link-revoke", "share-link-open"),
    *("token-create", "token-revoke", "storage-clean-up", "compute-budget-change"),
    *("webhook-create", "webhook-delete"),
    *(
        "training-run-csv",
        "training-run-states",
        "adapter-csv",
        "training-run-annotate",
        "training-run-selection",
    ),
    *("target-module-config-explain", "target-module-config-export"),
    *("worker-pause", "worker-resume", "queue-prioritise", "playground-start", "playground-answer"),
    # `test_playground.py` looks at them.
    *("playground-vote", "try-out-link-create", "try-out-link-revoke", "try-out-open", "try-out-answer"),
    *(
        "try-out-vote",
        "prompt-set-save",
        "prompt-set-answer",
        "prompt-set-delete",
        "prompt-set-delete-prompt",
    ),
}


@pytest.fixture(scope="module")
def rows(installation: Installation, api: Api, finished_run: int) -> dict[str, int]:
    """Return ids of objects of each kind and state: things that went well, failed, and were stopped."""
    bad = api.upload("bad.jsonl", b'{"prompt": "a", "completion": ""}\n' * 3, name="Bad rows").json()["id"]
    odd = api.upload("odd.csv", b"question,hint,reply\na,b,c\nd,e,f\n", name="Odd columns").json()["id"]
    choice = {"name": "Upper part", "target_modules": ["o_proj"], "rank_pattern": {"o_proj": 4}}
    config = api.call("POST", "/target-module-configs", choice).json()["id"]
    written = subprocess.run(
        [sys.executable, "-m", "tests.rows", str(finished_run)],
        env=installation.environment,
        cwd=settings.BASE_DIR,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert written.returncode == 0, written.stderr
    for dataset in (bad, odd):
        assert api.wait(f"/datasets/{dataset}")["state"] == "failed"
    run = api.get(f"/runs/{finished_run}")
    return {
        "dataset": run["dataset"],
        "bad_dataset": bad,
        "asking_dataset": odd,
        "base_model": run["base_model"],
        "run": finished_run,
        "adapter": run["adapter"]["id"],
        "target_module_config": config,
        **json.loads(written.stdout),
    }


@pytest.fixture(scope="module")
def tab(installation: Installation, browser: Browser, mara: Person) -> Iterator[Page]:
    """One tab of Mara's for all pages."""
    window = browser.new_context(base_url=installation.url, storage_state=mara.session)
    yield window.new_page()
    window.close()


@pytest.fixture(scope="module")
def guest(installation: Installation, browser: Browser) -> Iterator[Page]:
    """The tab of somebody who is not signed in."""
    page = browser.new_page(base_url=installation.url)
    yield page
    page.close()


def test_every_route_is_either_looked_at_here_or_has_no_page() -> None:
    named = {route.name for route in urlpatterns if isinstance(route, URLPattern)}
    looked_at = {name.partition(",")[0] for name in (*PAGES, *ENTRANCES)} - {"API documentation"}
    assert named == looked_at | NOT_HERE


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_accessible_and_quiet(tab: Page, rows: dict[str, int], name: str) -> None:
    with complaints(tab) as complained:
        answer = tab.goto(PAGES[name].format(**rows), wait_until="load")
        assert answer is not None
        assert answer.status == 200
        assert faults(tab, file_name(name)) == []
    assert complained == []


@pytest.mark.parametrize("name", ENTRANCES)
def test_the_entrance_is_accessible_and_quiet(guest: Page, name: str) -> None:
    with complaints(guest) as complained:
        guest.goto(ENTRANCES[name])
        assert faults(guest, file_name(name)) == []
    assert complained == []


def test_an_invitation_is_accessible_and_quiet(guest: Page, tab: Page) -> None:
    tab.goto("/team/")
    tab.get_by_label("Email address").fill("nina@example.org")
    tab.get_by_role("button", name="Send invitation").click()
    link = tab.locator("#invitation-link").inner_text()
    with complaints(guest) as complained:
        guest.goto(link)
        assert guest.get_by_label("Your name").is_visible()
        assert faults(guest, "invitation-accept") == []
    assert complained == []


def test_a_missing_page_is_accessible_and_leads_on(tab: Page) -> None:
    answer = tab.goto("/runs/999999/")
    assert answer is not None
    assert answer.status == 404
    assert faults(tab, "missing") == []
    assert tab.get_by_role("link").count() > 0


def file_name(name: str) -> str:
    return re.sub(r"\W+", "-", name)
