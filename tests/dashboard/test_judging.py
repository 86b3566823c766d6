"""The judge's page: told before anything is sent, sent only with a tick, and what came of it in words."""

from __future__ import annotations

import re

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import Settings

from dashboard.models import (
    BaseModel,
    Dataset,
    EvaluationItem,
    Job,
    JudgeEvaluation,
    Project,
    Study,
    TrainingRun,
    User,
    Vote,
)
from dashboard.models.comparison import Comparison
from dashboard.models.comparison_words import warnings
from dashboard.models.judging import DEFAULT_ROWS, JUDGE, MOST_ROWS, endpoint, evaluations_of, rows_of
from tests.conftest import finish, make_run
from tests.dashboard.comparisons import score
from tests.dashboard.conftest import publish
from tests.dashboard.studies import make_study
from tests.dashboard.test_study_result import study

__all__ = ["study"]
KEY = "sk-canary-5772156649"


@pytest.fixture(autouse=True)
def judge(settings: Settings) -> None:
    """A judge that nobody reaches: these tests never call it, and neither may the web."""
    settings.JUDGE_URL = "https://judge.invalid/v1"
    settings.JUDGE_MODEL, settings.JUDGE_API_KEY = "gpt-test", KEY


@pytest.fixture
def scored(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> TrainingRun:
    """A run whose adapter answers 4 of 6 rows right; its base none."""
    run = make_run(project, dataset, base_model, by=ed)
    score(publish(run), [1, 1, 1, 1, 0, 0])
    return run


def page_of(client: Client, user: User, scope: Study | TrainingRun) -> str:
    client.force_login(user)
    answer = client.get(address(scope))
    assert answer.status_code == 200
    return answer.content.decode()


def address(scope: Study | TrainingRun) -> str:
    return reverse(f"{'study' if isinstance(scope, Study) else 'training-run'}-judge", args=[scope.pk])


def judge_all(scope: Study | TrainingRun, by: User, rows: int = 200, **counts: int) -> JudgeEvaluation:
    """What a worker leaves: right where the answer is the expected one."""
    found = endpoint()
    assert found
    judge_evaluation = JudgeEvaluation.objects.submit(scope, by=by, judge=found, rows=rows)
    questions = judge_evaluation.open_questions()
    judge_evaluation.note((asked.answer == asked.expected, items) for asked, items in questions)
    judge_evaluation.sum_up()
    JudgeEvaluation.objects.filter(pk=judge_evaluation.pk).update(
        **{"asked": len(questions), "judged": len(questions), **counts}
    )
    assert judge_evaluation.job
    finish(judge_evaluation.job)
    return judge_evaluation


def test_it_tells_what_would_be_sent_where_before_it_is_sent(
    client: Client, ed: User, scored: TrainingRun
) -> None:
    text = page_of(client, ed, scored)
    for words in (
        "gpt-test at judge.invalid",
        "Data leaves this installation",
        "up to 6 test rows, and 10 different answers",
        "You check answers.",
        "may be sent to judge.invalid",
    ):
        assert words in text, words
    assert KEY not in text
    assert not Job.objects.filter(kind="judge").exists()


def test_without_the_tick_nothing_is_sent(client: Client, ed: User, scored: TrainingRun) -> None:
    client.force_login(ed)
    answer = client.post(address(scored), {"rows": 200})
    assert answer.status_code == 422
    assert "Tick this first" in answer.content.decode()
    assert not JudgeEvaluation.objects.exists()


@pytest.mark.parametrize("rows", ["", "0", "1001", "many", "9" * 40])
def test_a_number_of_rows_that_is_none_is_refused_in_words(
    client: Client, ed: User, scored: TrainingRun, rows: str
) -> None:
    client.force_login(ed)
    answer = client.post(address(scored), {"rows": rows, "agreed": "on"})
    assert answer.status_code == 422
    assert "from 1 to 1,000" in answer.content.decode()


def test_with_it_a_light_job_is_queued_and_who_allowed_it_is_kept(
    client: Client, ed: User, scored: TrainingRun
) -> None:
    client.force_login(ed)
    assert client.post(address(scored), {"rows": 50, "agreed": "on"}).status_code == 302
    judge_evaluation = JudgeEvaluation.objects.get()
    assert judge_evaluation.job
    assert (
        judge_evaluation.job.kind,
        judge_evaluation.job.queue,
        judge_evaluation.by,
        judge_evaluation.rows,
    ) == ("judge", "cpu", ed, 50)
    assert (judge_evaluation.host, judge_evaluation.model) == ("judge.invalid", "gpt-test")
    assert KEY not in str(judge_evaluation.job.spec)
    text = page_of(client, ed, scored)
    assert "allowed by ed@example.org" in text
    assert "The judge is at work on these answers" in text
    assert 'hx-trigger="every 3s"' in text
    assert "Send them to the judge" not in text


def test_a_double_click_sends_once(client: Client, ed: User, scored: TrainingRun) -> None:
    client.force_login(ed)
    for _click in range(2):
        client.post(address(scored), {"rows": 50, "agreed": "on"})
    assert JudgeEvaluation.objects.count() == 1
    assert "with the judge already" in client.get(address(scored)).content.decode()


@pytest.fixture
def many(project: Project, dataset: Dataset, base_model: BaseModel, ed: User) -> TrainingRun:
    """A run with 450 scored rows, all of them answered in the same way by adapter and base."""
    run = make_run(project, dataset, base_model, by=ed)
    score(publish(run), [0.0] * 450)
    return run


def test_what_is_told_and_sent_is_of_the_number_that_was_asked_for(
    client: Client, ed: User, many: TrainingRun
) -> None:
    text = page_of(client, ed, many)
    assert "up to 200 test rows, and 200 different answers" in text
    assert 'name="rows" value="200"' in text
    assert 'hx-trigger="change, submit"' in text
    text = client.get(address(many), {"rows": 400}).content.decode()
    assert "up to 400 test rows, and 400 different answers" in text
    assert 'name="rows" value="400"' in text
    text = client.get(address(many), {"rows": MOST_ROWS}).content.decode()
    assert "up to 450 test rows, and 450 different answers" in text


def test_rows_beyond_the_usual_number_can_be_sent_after_them(
    client: Client, ed: User, many: TrainingRun
) -> None:
    judge_all(many, ed, rows=DEFAULT_ROWS)
    text = page_of(client, ed, many)
    assert "Enter a larger number to send more." in text
    assert "Send them to the judge" not in text
    text = client.get(address(many), {"rows": 400}).content.decode()
    assert "up to 400 test rows, and 200 different answers" in text
    client.post(address(many), {"rows": 400, "agreed": "on"})
    assert len(JudgeEvaluation.objects.latest("pk").open_questions()) == 200


def test_where_all_of_many_rows_are_judged_the_form_is_gone(
    client: Client, ed: User, many: TrainingRun
) -> None:
    judge_all(many, ed, rows=MOST_ROWS)
    text = page_of(client, ed, many)
    assert "nothing to send" in text
    assert "Show what would be sent" not in text


@pytest.mark.parametrize("rows", ["", "0", "1001", "many"])
def test_a_number_in_the_address_that_is_none_is_refused_in_words(
    client: Client, ed: User, scored: TrainingRun, rows: str
) -> None:
    client.force_login(ed)
    text = client.get(address(scored), {"rows": rows}).content.decode()
    assert "from 1 to 1,000" in text
    assert "Send them to the judge" not in text


def test_a_larger_draw_holds_the_smaller_one(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User
) -> None:
    run = make_run(project, dataset, base_model, by=ed)
    score(publish(run), [0.0] * 1100)
    few, more = (rows_of(evaluations_of(run), number) for number in (DEFAULT_ROWS, 400))
    assert (len(few), len(more)) == (200, 400)
    assert set(few) < set(more)


def test_the_page_is_loaded_anew_once_the_judge_has_finished(
    client: Client, vera: User, ed: User, scored: TrainingRun
) -> None:
    found = endpoint()
    assert found
    judge_evaluation = JudgeEvaluation.objects.submit(scored, by=ed, judge=found, rows=50)
    client.force_login(vera)
    poll = {"HX-Request": "true", "HX-Target": "judged"}
    assert "HX-Refresh" not in client.get(address(scored), headers=poll).headers
    assert judge_evaluation.job
    finish(judge_evaluation.job)
    assert client.get(address(scored), headers=poll).headers["HX-Refresh"] == "true"
    assert "HX-Refresh" not in client.get(address(scored)).headers


def test_its_counts_are_shown_with_what_could_not_be_read(
    client: Client, vera: User, ed: User, scored: TrainingRun
) -> None:
    judge_all(scored, ed, asked=10, judged=7, unreadable=2, unanswered=1)
    text = " ".join(re.sub(r"<[^>]+>", " ", page_of(client, vera, scored)).split())
    assert "7 of 10 2 1" in text
    assert "Base model 0.0 % 6" in text
    assert "Triage 66.7 % 6" in text


def test_where_all_is_judged_there_is_nothing_to_send_but_to_another_judge(
    client: Client, ed: User, scored: TrainingRun, settings: Settings
) -> None:
    judge_all(scored, ed)
    text = page_of(client, ed, scored)
    assert "nothing to send" in text
    assert "Data leaves this installation" not in text
    settings.JUDGE_MODEL = "stricter"
    assert "10 different answers" in page_of(client, ed, scored)


def test_a_failed_judging_says_why(client: Client, ed: User, scored: TrainingRun) -> None:
    client.force_login(ed)
    client.post(address(scored), {"rows": 50, "agreed": "on"})
    refused = "The judge at judge.invalid refused the key (status 401). Check `JUDGE_API_KEY`."
    finish(Job.objects.get(kind="judge"), "failed", error_code="judge_refused", error_message=refused)  # type: ignore[arg-type]
    assert "refused the key (status 401)" in page_of(client, ed, scored)


def test_without_a_judge_it_says_how_to_name_one(
    client: Client, ed: User, scored: TrainingRun, settings: Settings
) -> None:
    settings.JUDGE_URL = ""
    assert "No judge is set up" in page_of(client, ed, scored)
    client.post(address(scored), {"rows": 50, "agreed": "on"})
    assert not JudgeEvaluation.objects.exists()


def test_a_viewer_looks_and_sends_nothing(client: Client, vera: User, scored: TrainingRun) -> None:
    text = page_of(client, vera, scored)
    assert "Send them to the judge" not in text
    assert client.post(address(scored), {"rows": 50, "agreed": "on"}).status_code == 403


def test_an_outsider_finds_nothing(client: Client, otto: User, scored: TrainingRun, study: Study) -> None:
    client.force_login(otto)
    for scope in (scored, study):
        assert client.get(address(scope)).status_code == 404
        assert client.post(address(scope), {"rows": 50, "agreed": "on"}).status_code == 404


def test_a_study_that_works_still_hides_its_answers(
    client: Client, ed: User, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    working = make_study(project, dataset, base_model)
    client.force_login(ed)
    assert client.get(address(working)).status_code == 302
    assert client.post(address(working), {"rows": 5, "agreed": "on"}).status_code == 302
    for run in working.runs():
        assert client.get(address(run)).status_code == 302
    assert not JudgeEvaluation.objects.exists()


def test_a_run_of_a_study_is_judged_with_the_whole_study(client: Client, ed: User, study: Study) -> None:
    client.force_login(ed)
    run = study.runs()[0]
    for answer in (client.get(address(run)), client.post(address(run), {"rows": 5, "agreed": "on"})):
        assert answer.url == address(study)  # type: ignore[attr-defined]
    assert not JudgeEvaluation.objects.exists()


def test_who_sends_answers_of_a_study_s_run_is_told_that_nothing_was_sent(
    client: Client, ed: User, study: Study
) -> None:
    client.force_login(ed)
    run = study.runs()[0]
    assert "Nothing was sent" not in client.get(address(run), follow=True).content.decode()
    refused = client.post(address(run), {"rows": 5, "agreed": "on"}, follow=True).content.decode()
    assert "Nothing was sent: this run belongs to a study, whose answers are judged all together." in refused


def test_who_sends_answers_too_early_is_told_that_nothing_was_sent(
    client: Client, ed: User, run: TrainingRun
) -> None:
    client.force_login(ed)
    refused = client.post(address(run), {"rows": 5, "agreed": "on"}, follow=True).content.decode()
    assert "Nothing was sent." in refused
    assert "There are no answers yet" in refused


def test_a_run_without_scores_has_nothing_to_judge(client: Client, ed: User, run: TrainingRun) -> None:
    client.force_login(ed)
    assert client.get(address(run)).url == run.get_absolute_url()  # type: ignore[attr-defined]


def test_a_study_is_compared_by_the_judge_and_keeps_its_own_verdict(
    client: Client, vera: User, ed: User, study: Study
) -> None:
    before = study.result
    EvaluationItem.objects.filter(evaluation__subject="adapter", row__lte=30).update(output="e")
    judge_all(study, ed)
    text = page_of(client, vera, study)
    assert "the verdict keeps the metric that was fixed before it" in text
    link = re.search(r'href="(/compare/\?[^"]+)"', text)
    assert link
    compared = client.get(link[1].replace("&amp;", "&")).content.decode()
    assert "Judged right on 60 held-out rows" in compared
    assert Study.objects.get(pk=study.pk).result == before


def test_verdicts_that_come_later_are_not_hidden_by_the_cache(scored: TrainingRun, ed: User) -> None:
    judge_all(scored, ed)
    run = TrainingRun.objects.with_facts().with_scores().get(pk=scored.pk)
    assert Comparison.of([run], JUDGE).numbers["arms"][0]["metric"]["mean"] == pytest.approx(4 / 6)
    adapter = evaluations_of(scored).get(subject="adapter")
    for item in adapter.items.all():
        item.scores[JUDGE] = 1.0
        item.save()
    adapter.judge_evaluation.sum_up()
    run = TrainingRun.objects.with_facts().with_scores().get(pk=scored.pk)
    assert Comparison.of([run], JUDGE).numbers["arms"][0]["metric"]["mean"] == 1.0


def test_verdicts_of_another_judge_are_not_taken_from_the_cache(
    scored: TrainingRun, ed: User, settings: Settings
) -> None:
    def numbers() -> dict[str, object]:
        run = TrainingRun.objects.with_facts().with_scores().get(pk=scored.pk)
        return Comparison.of([run], JUDGE).numbers

    judge_all(scored, ed)
    before = numbers()
    # Its shares happen to be the same.
    settings.JUDGE_MODEL = "stricter"
    judge_all(scored, ed)
    EvaluationItem.objects.all().delete()
    assert numbers() != before


def test_two_judges_in_one_comparison_are_told(
    project: Project, dataset: Dataset, base_model: BaseModel, ed: User, settings: Settings
) -> None:
    runs = []
    for model, rate in (("gpt-test", 1e-4), ("stricter", 2e-4)):
        settings.JUDGE_MODEL = model
        run = make_run(project, dataset, base_model, by=ed, learning_rate=rate)
        score(publish(run), [1, 1, 0, 0])
        judge_all(run, ed)
        runs.append(TrainingRun.objects.with_facts().with_scores().get(pk=run.pk))
    assert any("different models or prompts" in text for text in warnings(Comparison.of(runs, JUDGE)))
    assert not any("different models" in text for text in warnings(Comparison.of(runs, "exact_match")))


def votes(scope: TrainingRun | Study, by: User, agreeing: int, against: int) -> None:
    items = list(EvaluationItem.objects.filter(evaluation__in=evaluations_of(scope)).order_by("-pk"))
    for place, item in enumerate(items[: agreeing + against]):
        Vote.objects.create(item=item, voter=by, is_right=bool(item.scores[JUDGE]) == (place < agreeing))


def test_few_votes_are_not_enough_to_trust_it(
    client: Client, vera: User, ed: User, scored: TrainingRun
) -> None:
    assert "none on an answer that the judge has judged" in page_of(client, vera, scored)
    judge_all(scored, ed)
    votes(scored, ed, 5, 1)
    text = page_of(client, vera, scored)
    assert "Too few votes to trust the judge: 6 of the 50 answers" in text
    assert "83.3 %" in text


def test_votes_that_are_all_even_tell_nothing_yet(
    client: Client, vera: User, ed: User, mara: User, scored: TrainingRun
) -> None:
    judge_all(scored, ed)
    item = EvaluationItem.objects.filter(evaluation__in=evaluations_of(scored))[0]
    for voter, is_right in ((ed, True), (mara, False)):
        Vote.objects.cast_by(voter, item, is_right=is_right)
    assert (
        "2 votes so far, and none on an answer that the judge has judged, or only where people disagree"
        in (page_of(client, vera, scored))
    )


@pytest.mark.parametrize(
    ("against", "words"),
    [(2, "People and judge say the same of 96.7 % of 60 answers"), (28, "Do not decide by it")],
)
def test_enough_votes_say_how_far_it_agrees(
    client: Client,
    vera: User,
    ed: User,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    against: int,
    words: str,
) -> None:
    run = make_run(project, dataset, base_model, by=ed)
    score(publish(run), [row % 2 for row in range(60)])
    judge_all(run, ed)
    votes(run, ed, 60 - against, against)
    text = page_of(client, vera, run)
    assert words in text
    assert "95 % interval" in text
