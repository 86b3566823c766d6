"""The evidence for presets, the project's configs, and the page of a config."""

from __future__ import annotations

import re

from django.test import Client
from django.urls import reverse

from dashboard.models import BaseModel, Project, TargetModuleConfig, User
from workers.target_modules.custom import Selection

URL = reverse("target-module-config-index")


def test_the_evidence_makes_no_superlative_claims(client: Client, vera: User) -> None:
    client.force_login(vera)
    page = client.get(URL).content.decode()
    for words in ("Attention output", "More modules", "Read at the source", "Second-hand"):
        assert words in page
    assert not re.search(r"\b(best|optimal|wins?|22\.6)\b", re.sub(r"<[^>]+>", " ", page), re.IGNORECASE)


def test_second_hand_evidence_has_no_numbers(client: Client, vera: User) -> None:
    client.force_login(vera)
    rows = re.findall(r"<tr>.*?</tr>", client.get(URL).content.decode(), re.DOTALL)
    rows_cells = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in rows]
    second = [cells[0] for cells in rows_cells if cells and cells[-1] == "Second-hand"]
    assert len(second) == 4
    assert not any(re.search(r"\d", text) for text in second)


def test_the_newest_versions_of_the_project_are_listed(
    client: Client, ed: User, project: Project, other_project: Project
) -> None:
    for where, name in ((project, "o_proj"), (project, "q_proj"), (other_project, "v_proj")):
        TargetModuleConfig.objects.compose(project=where, by=ed, name="Ours", selection=Selection((name,)))
    client.force_login(ed)
    assert [(one.project, one.version) for one in client.get(URL).context["configs"]] == [(project, 2)]


def test_the_recommended_badge_links_to_the_page(client: Client, ed: User, base_model: BaseModel) -> None:
    client.force_login(ed)
    page = client.get(reverse("training-run-presets"), {"base_model": base_model.pk})
    assert f'href="{URL}"' in page.content.decode()


def test_texts_of_a_config(client: Client, vera: User, project: Project, base_model: BaseModel) -> None:
    config = TargetModuleConfig.objects.compose(
        project=project, by=vera, name="Ours", selection=Selection(("o_proj",)), evidence="Seen twice."
    )
    client.force_login(vera)
    page = client.get(config.get_absolute_url()).content.decode()
    assert "Seen twice." in page
    assert "2 of 2 layers, 2 modules: attention output" in page
    assert "Make a new version" not in page
