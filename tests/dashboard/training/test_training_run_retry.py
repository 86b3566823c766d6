"""Retry proposals of an ended run, and the form that they open."""

from __future__ import annotations

import html

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.forms.training.retry import overrides, retries
from dashboard.models import BaseModel, Dataset, Project, State, TrainingRun, User
from dashboard.models.jobs.adjustments import use_smaller_batches
from tests.conftest import finish, make_run


def failed(run: TrainingRun, code: str) -> TrainingRun:
    assert run.job is not None
    finish(run.job, State.FAILED, error_code=code, error_message="It went wrong.")
    return TrainingRun.objects.get(pk=run.pk)


def proposals(run: TrainingRun) -> dict[str, list[tuple[str, str]]]:
    """Return label -> (before, after) of each change."""
    return {
        retry.label: [(before, after) for _name, before, after in retry.changes] for retry in retries(run)
    }


def test_lack_of_memory_has_three_proposals(run: TrainingRun) -> None:
    assert proposals(failed(run, "out_of_memory")) == {
        "Reduce the batch size": [("8", "4"), ("1", "2")],
        "Turn on gradient checkpointing": [("no", "yes")],
        "Reduce the maximum sequence length": [("64", "32")],
    }


def test_proposals_start_from_automatic_changes(run: TrainingRun) -> None:
    assert run.job is not None
    run.job.move("claim", attempt=1)
    use_smaller_batches(run.job, "out_of_memory")
    run.job.move("fail", error_code="out_of_memory", error_message="Not enough memory.")
    found = proposals(TrainingRun.objects.get())
    assert found["Reduce the batch size"] == [("8", "2"), ("1", "4")]


def test_divergence_proposes_a_lower_learning_rate(run: TrainingRun) -> None:
    assert proposals(failed(run, "diverged")) == {"Lower the learning rate": [("0.0002", "0.00007")]}


@pytest.mark.parametrize("code", ["bad_data", "disk_full"])
def test_other_failures_have_no_proposals(run: TrainingRun, code: str) -> None:
    assert not proposals(failed(run, code))


def test_too_long_rows_propose_a_shorter_maximum_length(run: TrainingRun) -> None:
    assert list(proposals(failed(run, "max_length_too_long"))) == ["Reduce the maximum sequence length"]


def test_only_ended_runs_have_proposals(run: TrainingRun) -> None:
    assert run.job is not None
    assert not proposals(run)
    run.job.request_cancel()
    assert len(proposals(TrainingRun.objects.get())) == 3


@pytest.mark.parametrize(
    ("longest", "words"), [(30, "no answer is cut"), (60, "About 44 % of the answers are cut.")]
)
def test_a_shorter_length_states_the_cut_answers(run: TrainingRun, longest: int, words: str) -> None:
    version = run.dataset_version
    ends = [longest * place / 100 for place in range(101)]
    lengths = {"quantiles": ends, "answer_ends": ends, "learned_mean": longest / 8, "shared_prefix": 0}
    version.report = {**version.report, "token_lengths": lengths}
    version.save()
    shorter = retries(failed(run, "out_of_memory"))[-1]
    assert words in shorter.effect


def test_the_smallest_settings_have_no_proposals(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    small = {"per_device_train_batch_size": 1, "max_length": 16, "gradient_checkpointing": True}
    run = make_run(project, dataset, base_model, **small)
    assert not proposals(failed(run, "out_of_memory"))


def test_a_link_changes_valid_settings_only() -> None:
    query = {"max_length": "32", "r": "0", "seed": "x", "name": "Other", "learning_rate": "0.00007"}
    assert overrides(query) == {"max_length": 32, "learning_rate": 0.00007}


def test_the_form_shows_old_and_new_values(client: Client, ed: User, run: TrainingRun) -> None:
    client.force_login(ed)
    smaller = retries(failed(run, "out_of_memory"))[0]
    page = client.get(smaller.url).content.decode()
    assert f'href="{run.get_absolute_url()}">Triage #{run.pk}</a>' in page
    assert "Batch size per device: <del>8</del> → <strong>4</strong>" in page
    form = client.get(smaller.url).context["form"]
    assert (form["per_device_train_batch_size"].value(), form["gradient_accumulation_steps"].value()) == (
        4,
        2,
    )


def test_a_clone_shows_no_changes(client: Client, ed: User, run: TrainingRun) -> None:
    client.force_login(ed)
    page = client.get(f"{reverse('training-run-create')}?clone={run.pk}").content.decode()
    assert "The form has the settings of" in page
    assert "<del>" not in page


def test_the_run_page_links_to_the_proposals(client: Client, ed: User, vera: User, run: TrainingRun) -> None:
    run = failed(run, "out_of_memory")
    client.force_login(ed)
    page = client.get(run.get_absolute_url()).content.decode()
    assert html.escape(retries(run)[0].url) in page
    client.force_login(vera)
    assert "Retry with" not in client.get(run.get_absolute_url()).content.decode()
