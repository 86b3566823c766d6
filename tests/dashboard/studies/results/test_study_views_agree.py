"""One verdict, to the last digit: on page and report, in API, JSON and CSV, and as the report is printed."""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.test import Client
from django.urls import reverse
from playwright.sync_api import Route
from pypdf import PdfReader

from dashboard.models import BaseModel, Dataset, Project, Study, User
from tests.dashboard.studies.factories import conclude, make_study
from tests.e2e.installation import run_chromium

# Of 200 rows base and arms answer so many; the seeds differ in one row of ten.
RIGHT = {"base": 40, "efficient": 158, "mlp": 95, "quality": 160}
SEEDS = [1, 2, 3, 4, 5]


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel) -> Study:
    """A study that ends before its last look."""
    table = {
        name: {
            seed: [float(row < right or (row + seed) % 40 == 0) for row in range(200)]
            for seed in ([0] if name == "base" else SEEDS)
        }
        for name, right in RIGHT.items()
    }
    queued = make_study(
        project, dataset, base_model, slugs=("efficient", "mlp", "quality"), seeds=SEEDS, margin=0.03
    )
    return conclude(queued, table)


def said(study: dict[str, Any]) -> list[str]:
    """Return what every view must say, written from the numbers of the API."""
    first, second = study["comparisons"]
    texts = [study["verdict"].split(". ")[0], f"look {study['ending']['look']} of {study['ending']['looks']}"]
    for one in (first, second):
        numbers = (100 * one[name] for name in ("difference", "low", "high"))
        difference, low, high = (f"{number:+.1f}" for number in numbers)
        texts += [f"{difference} points", f"95 % interval {low} to {high}"]
    base = study["base"]["metric"]["mean"]
    gain = 100 * (next(arm for arm in study["arms"] if arm["name"] == "quality")["metric"]["mean"] - base)
    return [*texts, f"{first['kept']['mean'] * gain:.1f} of {gain:.1f} points"]


def plain(markup: str) -> str:
    return squeezed(html.unescape(re.sub(r"<[^>]+>", " ", markup)))


def squeezed(text: str) -> str:
    """Return the text without white space, which a printed line may break anywhere."""
    return "".join(text.casefold().split())


def printed(report: str) -> str:
    """Return the text of a page as Chromium prints it."""

    def serve(route: Route) -> None:
        path = route.request.url.removeprefix("http://report.test/")
        found = finders.find(path.removeprefix("static/").partition("?")[0]) if path else None
        if found:
            route.fulfill(path=Path(str(found)))
        else:
            route.fulfill(status=404 if path else 200, body="" if path else report, content_type="text/html")

    with run_chromium() as browser:
        page = browser.new_page()
        page.route("**/*", serve)
        page.goto("http://report.test/")
        pdf = page.pdf(format="A4")
    return squeezed("".join(sheet.extract_text() for sheet in PdfReader(io.BytesIO(pdf)).pages))


@pytest.mark.slow
def test_page_report_print_api_and_files_agree(client: Client, api: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    found = api.get(f"/api/v1/studies/{study.pk}").json()
    report = client.get(reverse("study-report", args=[study.pk])).content.decode()
    page = client.get(study.get_absolute_url()).content.decode()
    for view, text in {"page": plain(page), "report": plain(report), "print": printed(report)}.items():
        for words in said(found):
            assert squeezed(words) in text, f"the {view} does not say: {words}"
    export = api.get(f"/api/v1/studies/{study.pk}/export").json()
    download = client.get(reverse("study-json", args=[study.pk])).json()
    for whole in (export["study"], download["study"]):
        assert whole["verdict"] == found["verdict"]
        for one, more in zip(found["comparisons"], whole["comparisons"], strict=True):
            assert one.items() <= more.items()
    lines = client.get(reverse("study-deltas-csv", args=[study.pk])).content.decode()
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(lines))}
    for one in found["comparisons"]:
        row = rows[one["arm"]]
        numbers = [float(row[name]) for name in ("difference", "difference_low", "difference_high")]
        assert numbers == [one[name] for name in ("difference", "low", "high")]
        assert (row["outcome"], int(row["look"])) == (one["outcome"], one["look"])
        assert float(row["kept_gain"]) == one["kept"]["mean"]
