"""What a finished study says on its page: the sentence first, then every number behind it."""

from __future__ import annotations

import pytest
from django.test import Client

from dashboard import study_charts
from dashboard.models import BaseModel, Dataset, Project, Study, User
from dashboard.views.study_results import deltas, result_context
from tests.dashboard.studies import Table, conclude, make_study

SEEDS = (1, 2, 3)
ROWS = 60
# Quality answers 40 of 60 rows, efficient the same and mlp only 10 of them.
TABLE: Table = {
    "base": {0: [1] * 5 + [0] * 55},
    "efficient": {seed: [1] * 40 + [0] * 20 for seed in SEEDS},
    "mlp": {seed: [1] * 10 + [0] * 50 for seed in SEEDS},
    "quality": {seed: [1] * 40 + [0] * 20 for seed in SEEDS},
}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Finished: three arms, three seeds; efficient as good as quality, mlp worse."""
    queued = make_study(
        project, dataset, base_model, by=ed, slugs=("efficient", "mlp", "quality"), margin=0.06
    )
    conclude(queued, TABLE)
    return Study.objects.with_facts().get(pk=queued.pk)


def test_the_sentence_comes_first_and_every_arm_has_its_outcome(
    client: Client, vera: User, study: Study
) -> None:
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode()
    places = [page.index(part) for part in ("study-verdict", "plot-intervals", 'class="table card-table')]
    assert places == sorted(places)
    for words in ("As good within your margin", "Worse", "Reference", "-50.0 points", "60 test rows"):
        assert words in page


def test_it_never_calls_an_arm_by_a_superlative(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    page = client.get(study.get_absolute_url()).content.decode().lower()
    assert not any(word in page for word in ("best", "winner", "wins", "optimal"))


def test_the_plot_shows_every_seed_and_the_base_model(study: Study) -> None:
    plot = study_charts.intervals(study)
    assert [row["name"] for row in plot["rows"]] == ["efficient", "quality", "mlp", "Base model"]
    assert [len(row["seeds"]) for row in plot["rows"]] == [3, 3, 3, 0]
    lowest = min(float(row["low"].rstrip("%")) for row in plot["rows"])
    highest = max(float(row["high"].rstrip("%")) for row in plot["rows"])
    assert (lowest, highest) == (study_charts.EDGE, 100 - study_charts.EDGE)


def test_a_difference_names_its_interval_its_p_and_the_gain_kept(study: Study) -> None:
    rows = {row["arm"].name: row for row in deltas(study)}
    assert rows["mlp"]["difference"] == "-50.0 points"
    assert rows["mlp"]["p"] == "< 0.001"
    assert rows["mlp"]["kept"].startswith("14 %")
    assert rows["efficient"]["interval"].startswith("95 % interval -")
    assert rows["quality"]["difference"] == ""


def test_an_unfinished_study_has_no_result_to_show(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    assert result_context(make_study(project, dataset, base_model), {}) == {}


def test_a_loss_is_written_in_nats_and_its_lowest_arm_comes_first(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    table: Table = {
        "base": {0: [3.0, 3.2]},
        "efficient": {seed: [1.0, 1.2] for seed in SEEDS},
        "quality": {seed: [0.9, 1.0] for seed in SEEDS},
    }
    study = conclude(make_study(project, dataset, base_model, metric="loss"), table)
    plot = study_charts.intervals(study)
    assert [row["name"] for row in plot["rows"]][:2] == ["quality", "efficient"]
    assert plot["rows"][0]["words"].startswith("0.950 (")
