"""Adding arms to a study that has come to a result."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import ArmPlan, BaseModel, Dataset, Project, Study, TargetModuleConfig, User
from dashboard.models.study_words import later
from tests.dashboard.studies import conclude, make_arms, make_study
from workers.selections import Selection

SCORES = {"base": {0: [0, 0, 0, 1]}, "efficient": {1: [1, 0, 0, 1], 2: [1, 1, 0, 0], 3: [1, 0, 1, 0]}}
TABLE: Any = {**SCORES, "quality": {1: [1, 1, 0, 1], 2: [1, 0, 1, 1], 3: [1, 1, 1, 0]}}
MORE: Any = {**TABLE, "MLP": {1: [1, 1, 1, 1], 2: [0, 1, 1, 1], 3: [1, 1, 1, 1]}}


@pytest.fixture
def study(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> Study:
    """Finished, with three seeds."""
    return conclude(make_study(project, dataset, base_model, by=ed), TABLE)


def pk_of(slug: str) -> int:
    return TargetModuleConfig.objects.get(slug=slug).pk


def send(client: Client, study: Study, **values: Any) -> Any:
    sent = {"configs": [pk_of("mlp")], **values}
    return client.post(reverse("study-more-arms", args=[study.pk]), sent, follow=True)


def test_it_trains_the_new_arm_alone_on_the_seeds_that_are_there(
    client: Client, ed: User, study: Study
) -> None:
    before = set(study.runs().values_list("pk", flat=True))
    fixed = (study.metric, study.reference, study.margin, study.seeds)
    client.force_login(ed)
    send(client, study)
    study = Study.objects.get(pk=study.pk)
    added = study.runs().exclude(pk__in=before)
    assert [run.seed for run in added.order_by("pk")] == [1, 2, 3]
    assert {str(run.study_arm) for run in added} == {"MLP"}
    assert {job.attempt for job in study.jobs().exclude(training_runs__in=added)} == {1}, "nothing runs again"
    assert (study.metric, study.reference, study.margin, study.seeds) == fixed
    learn = [
        Study.objects.get(pk=study.pk).arms.get(name=name).hyperparameters for name in ("MLP", "quality")
    ]
    assert learn[0] == learn[1], "it has the reference's settings"


def test_the_verdict_then_allows_for_the_larger_number_of_comparisons(
    client: Client, ed: User, study: Study
) -> None:
    (before,) = study.result["comparisons"]
    client.force_login(ed)
    send(client, study)
    study = conclude(Study.objects.get(pk=study.pk), MORE)
    after = {one["arm"]: one for one in study.result["comparisons"]}
    assert set(after) == {"efficient", "MLP"}
    for name in ("difference", "low", "high", "p"):
        assert after["efficient"][name] == before[name]
    larger, smaller = sorted((one["p"] for one in after.values()), reverse=True)
    assert sorted(one["p_adjusted"] for one in after.values()) == pytest.approx(
        sorted([min(1.0, 2 * smaller), max(min(1.0, 2 * smaller), larger)])
    )


def test_the_page_and_the_report_say_that_it_came_later(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    page = send(client, study).content.decode()
    assert "when a first result was known: MLP." in page
    assert "the correction counts every arm" in page
    study = conclude(Study.objects.get(pk=study.pk), MORE)
    for name in ("study-detail", "study-report"):
        page = client.get(reverse(name, args=[study.pk])).content.decode()
        assert "when a first result was known: MLP." in page
    assert study.later_arms == ["MLP"]


def test_an_arm_that_comes_before_any_result_is_told_so(
    project: Project, dataset: Dataset, base_model: BaseModel, client: Client, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed)
    client.force_login(ed)
    send(client, study)
    assert "before any result was known: MLP." in later(Study.objects.get(pk=study.pk))[0]


def test_seeds_that_come_later_are_told_too(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    client.post(reverse("study-seeds", args=[study.pk]), {"count": 2, "first": 4})
    (told,) = later(Study.objects.get(pk=study.pk))
    assert "when a first result was known: 4, 5." in told
    assert "do not allow for having looked before" in told


def test_seeds_and_arms_that_come_at_one_moment_are_both_kept(ed: User, study: Study) -> None:
    one, other, third = (Study.objects.get(pk=study.pk) for _copy in range(3))
    one.add_seeds([4], ed)
    other.add_arms(make_arms("mlp"), ed)
    third.add_seeds([5], ed)
    study = Study.objects.get(pk=study.pk)
    assert study.seeds == [1, 2, 3, 4, 5]
    assert [(told["arms"], told["seeds"]) for told in study.additions] == [
        ([], [4]),
        (["mlp"], []),
        ([], [5]),
    ]
    queued = {(str(run.study_arm), run.seed) for run in study.runs().filter(job__state="queued")}
    fresh = {(name, seed) for name in ("efficient", "quality") for seed in (4, 5)}
    assert queued == fresh | {("mlp", seed) for seed in (1, 2, 3, 4, 5)}
    assert study.runs().count() == len(queued) + 6, "nothing is trained twice"


def test_whoever_moves_a_study_on_takes_nothing_back_that_came_meanwhile(ed: User, study: Study) -> None:
    stale = Study.objects.with_facts().get(pk=study.pk)
    study.add_arms(make_arms("mlp"), ed)
    stale.advance()
    found = Study.objects.get(pk=study.pk)
    assert (found.later_arms, found.finished_at) == (["mlp"], None)
    assert found.runs().filter(study_arm__name="mlp").count() == 3
    assert found.forecast_seconds == study.forecast_seconds


def test_a_double_click_adds_it_once(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    for _click in range(2):
        page = send(client, study).content.decode()
        assert "notice-error" not in page.split('id="notices"')[0]
    assert Study.objects.get(pk=study.pk).arms.count() == 3


def test_what_came_later_under_another_name_is_not_added_again(
    client: Client, ed: User, study: Study
) -> None:
    mlp = TargetModuleConfig.objects.get(slug="mlp")
    study.add_arms([ArmPlan("feed-forward", mlp, study.reference_arm.varied({}))], ed)
    client.force_login(ed)
    send(client, study)
    assert [arm.name for arm in Study.objects.get(pk=study.pk).arms.all()] == [
        "efficient", "quality", "feed-forward"
    ]  # fmt: skip


def test_the_next_version_of_a_choice_is_an_arm_of_its_own(
    client: Client, ed: User, project: Project, study: Study
) -> None:
    client.force_login(ed)
    for name in ("q_proj", "v_proj"):
        config = TargetModuleConfig.objects.compose(
            project=project, by=ed, name="Ours", selection=Selection((name,))
        )
        for _click in range(2):
            send(client, study, configs=[config.pk])
    arms = Study.objects.get(pk=study.pk).arms.all()
    assert [arm.name for arm in arms] == ["efficient", "quality", "Ours", "Ours v2"]


def test_a_choice_that_is_there_may_come_again_with_another_rank(
    client: Client, ed: User, study: Study
) -> None:
    client.force_login(ed)
    send(client, study, configs=[pk_of("mlp")], r="8")
    arm = Study.objects.get(pk=study.pk).arms.get(name="MLP, r 8")
    assert (arm.hyperparameters["r"], arm.hyperparameters["lora_alpha"]) == (8, 16), "one rule of scaling"


def test_equal_parameters_give_it_its_own_rank(
    project: Project, dataset: Dataset, base_model: BaseModel, client: Client, ed: User
) -> None:
    study = conclude(make_study(project, dataset, base_model, by=ed, budget="equal-parameters"), TABLE)
    client.force_login(ed)
    send(client, study, r="2")
    sizes = {
        str(run.study_arm): run.forecast["trainable_parameters"]
        for run in Study.objects.get(pk=study.pk).runs()
    }
    assert abs(sizes["MLP"] / sizes["quality"] - 1) < 0.05


def test_where_rates_are_looked_for_it_looks_for_its_own(
    project: Project, dataset: Dataset, base_model: BaseModel, client: Client, ed: User
) -> None:
    study = make_study(project, dataset, base_model, by=ed, learning_rates=[1e-4, 1e-3])
    study = conclude(study, TABLE)
    client.force_login(ed)
    send(client, study)
    study = Study.objects.get(pk=study.pk)
    assert {(str(run.study_arm), run.rung) for run in study.runs().filter(job__state="queued")} == {
        ("MLP", 0)
    }
    study = conclude(study, MORE)
    assert study.arms.get(name="MLP").learning_rate == study.arms.get(name="quality").learning_rate
    assert len(study.result["comparisons"]) == 2


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"configs": []}, "Tick what to add."),
        ({"configs": ["9" * 30]}, "There is no such preset in this project."),
        ({"r": "0"}, "greater than or equal to 1"),
        ({"configs": ["efficient"]}, "efficient is an arm already with rank 4. Choose another rank for it."),
    ],
)
def test_it_refuses_in_words(client: Client, ed: User, study: Study, values: Any, words: str) -> None:
    client.force_login(ed)
    if values.get("configs") == ["efficient"]:
        values = {"configs": [pk_of("efficient")]}
    assert words in send(client, study, **values).content.decode()
    assert Study.objects.get(pk=study.pk).arms.count() == 2


def test_a_stopped_study_takes_none(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    study = make_study(project, dataset, base_model, by=ed)
    study.request_cancel(ed)
    client.force_login(ed)
    assert "come to a result" in send(client, study).content.decode()


def test_it_asks_on_the_page_of_a_finished_study(client: Client, ed: User, vera: User, study: Study) -> None:
    client.force_login(ed)
    page = client.get(study.get_absolute_url()).content.decode()
    assert "Add arms?" in page
    client.force_login(vera)
    assert "Add arms?" not in client.get(study.get_absolute_url()).content.decode()


def test_while_the_base_model_is_counted_again_the_page_says_so(
    client: Client, ed: User, base_model: BaseModel, study: Study
) -> None:
    BaseModel.objects.filter(pk=base_model.pk).update(census={**(base_model.census or {}), "version": 1})
    client.force_login(ed)
    answer = client.get(study.get_absolute_url())
    assert answer.status_code == 200
    assert "counted by another version" in answer.content.decode().split("Add arms?")[1]
    assert "counted by another version" in send(client, study).content.decode()
    assert Study.objects.get(pk=study.pk).arms.count() == 2


def test_it_refuses_a_viewer(client: Client, vera: User, study: Study) -> None:
    client.force_login(vera)
    assert send(client, study).status_code == 403


def test_it_hides_the_study_from_an_outsider(client: Client, otto: User, study: Study) -> None:
    client.force_login(otto)
    assert send(client, study).status_code == 404
