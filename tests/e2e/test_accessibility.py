"""Every page with real rows on it, in light and dark, at desk and phone width: none has a serious fault."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from django.urls import URLPattern
from playwright.sync_api import Browser, Page

from dashboard.urls import urlpatterns
from tests.e2e.audit import complaints, faults
from tests.e2e.installation import Api, Installation, until

pytestmark = pytest.mark.slow

# Routes with a page for people, with what their address needs. {…} is an id of `Rows`.
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
    "compare": "/compare/?runs={run}&runs={stopped_run}",
    "compare, nothing chosen": "/compare/",
    "adapter-index": "/adapters/",
    "adapter-detail": "/adapters/{adapter}/",
    "queue-index": "/queue/",
    "settings": "/settings/",
    "health-index": "/settings/health/",
    "storage-index": "/settings/storage/",
    "compute-budget-index": "/settings/compute-budget/",
    "token-index": "/settings/tokens/",
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
    *("compare-json", "saved-view-create", "saved-view-delete"),
    *("dataset-report", "compare-csv", "adapter-download", "adapter-stage", "training-run-resume"),
    *("dataset-sample", "dataset-import-again", "base-model-inspect", "queue-cancel"),
    *("membership-change", "membership-remove", "invitation-create", "invitation-revoke"),
    *("study-arms", "study-plan", "study-grid", "study-cancel", "study-seeds"),
    *("study-score", "training-run-score"),
    # Pages of a finished study: `test_study.py` looks at them.
    *("study-judge", "study-vote"),
    *("study-items", "study-report", "study-deltas-csv", "study-scores-csv", "study-json", "decision-create"),
    *("share-link-create", "share-link-revoke", "share-link-open"),
    *("token-create", "token-revoke", "storage-clean-up", "compute-budget-change"),
    *("target-module-config-explain", "target-module-config-export"),
    *("worker-pause", "worker-resume", "queue-prioritise"),
}


@dataclass(frozen=True)
class Rows:
    """Ids of one object of each kind and state."""

    dataset: int
    bad_dataset: int
    asking_dataset: int
    base_model: int
    run: int
    failed_run: int
    stopped_run: int
    adapter: int
    study: int
    stopped_study: int
    target_module_config: int


@pytest.fixture(scope="module")
def rows(api: Api, dataset: int, finished_run: int) -> Rows:
    """Rows of a project after some days: things that went well, failed, and were stopped."""
    long = api.post("/runs", asked(dataset, name="Too long", max_steps=5000))["id"]
    cut = api.post("/runs", asked(dataset, name="Cut off", max_steps=2, max_length=16))["id"]
    bad = api.upload(
        "empty-answers.jsonl", b'{"prompt": "a", "completion": ""}\n' * 3, name="Bad rows"
    ).json()
    odd = api.upload("odd.csv", b"question,hint,reply\na,b,c\nd,e,f\n", name="Odd columns").json()
    choice = {"name": "Upper part", "target_modules": ["o_proj"], "rank_pattern": {"o_proj": 4}}
    config = api.call("POST", "/target-module-configs", choice).json()["id"]
    study, stopped_study = (api.post("/studies", compared(dataset, seeds))["id"] for seeds in (1, 3))
    api.post(f"/studies/{stopped_study}/cancel")
    # Stopped in the midst of its curves.
    until(lambda: api.get(f"/runs/{long}")["step"] > 20, "twenty steps")
    api.post(f"/runs/{long}/cancel", {"keep": "checkpoint"})
    assert api.wait(f"/runs/{long}")["state"] == "cancelled"
    assert api.wait(f"/runs/{cut}")["state"] == "failed"
    assert api.wait(f"/studies/{study}", seconds=180)["state"] == "succeeded"
    for name, found in (("Bad rows", bad), ("Odd columns", odd)):
        assert api.wait(f"/datasets/{found['id']}")["state"] == "failed", name
    return Rows(
        dataset=dataset,
        bad_dataset=bad["id"],
        asking_dataset=odd["id"],
        base_model=api.get("/base-models")["data"][0]["id"],
        run=finished_run,
        failed_run=cut,
        stopped_run=long,
        adapter=api.get(f"/runs/{finished_run}")["adapter"]["id"],
        study=study,
        stopped_study=stopped_study,
        target_module_config=config,
    )


def asked(dataset: int, *, name: str = "", **hyper: int) -> dict[str, object]:
    return {
        "name": name,
        "dataset": dataset,
        "target_module_config": "efficient",
        "hyperparameters": {"max_steps": 4, "max_length": 128, **hyper},
    }


def compared(dataset: int, seeds: int) -> dict[str, object]:
    few = {"max_steps": 2, "max_length": 128}
    arms = [{"target_module_config": slug, "hyperparameters": few} for slug in ("efficient", "quality")]
    return {"dataset": dataset, "arms": arms, "seeds": list(range(1, seeds + 1))}


def test_every_route_is_either_looked_at_here_or_has_no_page() -> None:
    named = {route.name for route in urlpatterns if isinstance(route, URLPattern)}
    looked_at = {name.partition(",")[0] for name in (*PAGES, *ENTRANCES)} - {"API documentation"}
    assert named == looked_at | NOT_HERE


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_accessible_and_quiet(page: Page, rows: Rows, name: str) -> None:
    with complaints(page) as complained:
        answer = page.goto(PAGES[name].format(**vars(rows)), wait_until="load")
        assert answer is not None
        assert answer.status == 200
        assert faults(page, file_name(name)) == []
    assert complained == []


@pytest.mark.parametrize("name", ENTRANCES)
def test_the_entrance_is_accessible_and_quiet(
    installation: Installation, browser: Browser, name: str
) -> None:
    page = browser.new_page(base_url=installation.url)
    with complaints(page) as complained:
        page.goto(ENTRANCES[name])
        assert faults(page, file_name(name)) == []
    assert complained == []
    page.close()


def test_an_invitation_is_accessible_and_quiet(
    installation: Installation, browser: Browser, page: Page
) -> None:
    page.goto("/team/")
    page.get_by_label("Email address").fill("nina@example.org")
    page.get_by_role("button", name="Send invitation").click()
    link = page.locator("#invitation-link").inner_text()
    guest = browser.new_page()
    with complaints(guest) as complained:
        guest.goto(link)
        assert guest.get_by_label("Your name").is_visible()
        assert faults(guest, "invitation-accept") == []
    assert complained == []
    guest.close()


@pytest.mark.parametrize("path", ["/no-such-page/", "/runs/999999/"])
def test_a_missing_page_is_accessible_and_leads_on(page: Page, path: str) -> None:
    answer = page.goto(path)
    assert answer is not None
    assert answer.status == 404
    assert faults(page, f"missing-{path.split('/')[1]}") == []
    assert page.get_by_role("link").count() > 0


def file_name(name: str) -> str:
    return re.sub(r"\W+", "-", name)
