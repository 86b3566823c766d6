"""Fine-tuning jobs of the OpenAI-compatible API: create, list, read, cancel, pause, resume."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from dashboard.models import (
    Adapter,
    ApiToken,
    BaseModel,
    ComputeBudget,
    Dataset,
    Job,
    JobEvent,
    Project,
    Role,
    State,
    TrainingRun,
    User,
)
from tests.conftest import finish, make_base_model, make_dataset, make_run, make_user
from tests.dashboard.conftest import make_checkpoint, publish, start_training
from tests.openai_client import AsgiTransport, Connect, client_of


@pytest.fixture
def given(base_model: BaseModel, dataset: Dataset) -> dict[str, Any]:
    """The least that a job needs."""
    return {"model": base_model.hub_id, "training_file": f"file-{dataset.versions.get().pk}"}


def create(client: OpenAI, given: dict[str, Any], **more: Any) -> FineTuningJob:
    return client.fine_tuning.jobs.create(**{**given, **more})


def supervised(**values: Any) -> dict[str, Any]:
    return {"type": "supervised", "supervised": {"hyperparameters": values}}


def test_job_is_a_run(client: OpenAI, given: dict[str, Any], project: Project, ed: User) -> None:
    job = create(client, given, suffix="triage", metadata={"team": "support"}, seed=7)
    run = TrainingRun.objects.get()
    assert job.id == f"ftjob-{run.pk}"
    assert (run.name, run.seed, run.metadata, run.created_by) == ("triage", 7, {"team": "support"}, ed)
    assert run.target_module_config.slug == "efficient"
    assert job.to_dict() == {
        **given,
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(run.created_at.timestamp()),
        "error": None,
        "estimated_finish": job.estimated_finish,
        "fine_tuned_model": None,
        "finished_at": None,
        "hyperparameters": job.hyperparameters.to_dict(),
        "integrations": None,
        "metadata": {"team": "support"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": job.hyperparameters.to_dict()}},
        "organization_id": "support",
        "result_files": [],
        "seed": 7,
        "status": "queued",
        "trained_tokens": None,
        "validation_file": None,
    }
    assert job.estimated_finish
    assert job.estimated_finish >= job.created_at


def test_automatic_settings_are_returned_as_numbers(client: OpenAI, given: dict[str, Any]) -> None:
    automatic = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    for more in ({}, {"hyperparameters": automatic}, {"method": supervised(**automatic)}):
        values = create(client, given, **more).hyperparameters.to_dict()
        assert values == {
            "n_epochs": 3,
            "batch_size": 8,
            "learning_rate_multiplier": 1,
            "r": 16,
            "lora_alpha": 32,
            "lora_dropout": 0.0,
            "preset": "efficient",
        }
    seeds = {run.seed for run in TrainingRun.objects.all()}
    assert len(seeds) == 3, "each job has a seed of its own"


@pytest.mark.parametrize("place", ["method", "hyperparameters", "extra_body"])
def test_settings_are_used_wherever_they_stand(client: OpenAI, given: dict[str, Any], place: str) -> None:
    plain: dict[str, Any] = {"n_epochs": 2, "batch_size": 12, "learning_rate_multiplier": 0.5}
    lora = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.1, "preset": "quality"}
    if place == "method":
        more: dict[str, Any] = {"method": supervised(**plain, **lora)}
    elif place == "hyperparameters":
        more = {"hyperparameters": {**plain, **lora}}
    else:
        more = {"hyperparameters": plain, "extra_body": lora}
    job = create(client, given, **more)
    assert job.hyperparameters.to_dict() == {**plain, **lora}
    learn = TrainingRun.objects.get().hyperparameters
    # Twelve rows at once could need more memory than the default.
    assert (learn["per_device_train_batch_size"], learn["gradient_accumulation_steps"]) == (6, 2)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"method": {"type": "dpo"}}, "method.type"),
    ({"method": {"type": "reinforcement", "reinforcement": {}}}, "method.type"),
    ({"method": {"type": "supervised", "dpo": {}}}, "method.dpo"),
    ({"method": supervised(n_epochs=0)}, "method.supervised.hyperparameters.n_epochs"),
    ({"method": supervised(n_epochs="three")}, "method.supervised.hyperparameters.n_epochs"),
    ({"method": supervised(batch_size=0)}, "method.supervised.hyperparameters.batch_size"),
    ({"method": supervised(batch_size=2.5)}, "method.supervised.hyperparameters.batch_size"),
    ({"hyperparameters": {"learning_rate_multiplier": -1}}, "hyperparameters.learning_rate_multiplier"),
    ({"hyperparameters": {"learning_rate_multiplier": 1e9}}, "hyperparameters.learning_rate_multiplier"),
    ({"hyperparameters": {"epochs": 3}}, "hyperparameters.epochs"),
    ({"hyperparameters": {"r": 0}}, "hyperparameters.r"),
    ({"extra_body": {"r": 10**6}}, "r"),
    ({"extra_body": {"target_modules": ["q_proj"]}}, "target_modules"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**80}, "seed"),
    ({"suffix": "x" * 65}, "suffix"),
    ({"suffix": "a\nb"}, "suffix"),
    ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
    ({"metadata": {"k" * 65: "x"}}, "metadata"),
    ({"metadata": {"k": "x" * 513}}, "metadata.k"),
    ({"metadata": {"k": 5}}, "metadata.k"),
    ({"metadata": {"k": "a\x00b"}}, "metadata.k"),
    ({"metadata": ["k"]}, "metadata"),
    ({"model": 5}, "model"),
]


def test_wrong_job_is_refused(client: OpenAI, given: dict[str, Any]) -> None:
    for more, param in WRONG:
        with pytest.raises(openai.BadRequestError) as refused:
            create(client, given, **more)
        assert str(refused.value.param).startswith(param), more
        assert (refused.value.type, bool(refused.value.message)) == ("invalid_request_error", True)
    assert not TrainingRun.objects.exists()


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": "no/such-model"}, "model"),
        ({"training_file": "file-999"}, "training_file"),
        ({"training_file": "../../etc/passwd"}, "training_file"),
        ({"extra_body": {"preset": "made-up"}}, "target_module_config"),
    ],
)
def test_unknown_id_is_not_found(
    client: OpenAI, given: dict[str, Any], more: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        create(client, given, **more)
    assert refused.value.param == param


def test_model_and_file_of_another_project_are_not_found(
    client: OpenAI, given: dict[str, Any], other_project: Project
) -> None:
    theirs = make_base_model(other_project, hub_id="theirs/model")
    file = f"file-{make_dataset(other_project).versions.get().pk}"
    for more in ({"model": theirs.hub_id}, {"training_file": file}):
        with pytest.raises(openai.NotFoundError):
            create(client, given, **more)


def test_adapter_is_no_base_model(client: OpenAI, given: dict[str, Any], adapter: Adapter) -> None:
    tuned = next(model.id for model in client.models.list() if model.id.startswith("ft:"))
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, given, model=tuned)
    assert refused.value.param == "model"


def test_client_waits_for_a_file_that_is_being_processed(
    connect: Connect,
    token: str,
    given: dict[str, Any],
    project: Project,
    transport: AsgiTransport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = make_dataset(project, "Waiting", ready=False).versions.get()
    waits: list[float] = []

    def import_meanwhile(client: OpenAI, retries: int, options: Any, headers: Any) -> float:
        waits.append(float(headers["retry-after"]))
        assert version.job
        finish(version.job)
        version.record_import({"sha256": "cd" * 32, "test_sha256": "", "rows": 20, "splits": {"train": 16}})
        return 0

    monkeypatch.setattr(
        OpenAI, "_calculate_retry_timeout", lambda c, n, o, h=None: import_meanwhile(c, n, o, h)
    )
    job = create(connect(token, max_retries=2), given, training_file=f"file-{version.pk}")
    assert (job.status, waits) == ("queued", [10.0])


def test_failed_file_is_refused_with_its_problem(
    client: OpenAI, given: dict[str, Any], project: Project
) -> None:
    version = make_dataset(project, "Broken", ready=False).versions.get()
    assert version.job
    finish(version.job, State.FAILED, error_code="bad_data", error_message="Row 2 has no answer.")
    with pytest.raises(openai.BadRequestError, match=r"Row 2 has no answer\.") as refused:
        create(client, given, training_file=f"file-{version.pk}")
    assert refused.value.param == "training_file"


def test_month_without_room_is_a_conflict_that_is_not_tried_again(
    connect: Connect, token: str, given: dict[str, Any], project: Project, transport: AsgiTransport
) -> None:
    ComputeBudget.objects.create(project=project, hours=0)
    with pytest.raises(openai.ConflictError) as refused:
        create(connect(token, max_retries=2), given)
    assert refused.value.code == "over_budget"
    assert len(transport.requests) == 1


def test_retry_returns_the_first_job(
    connect: Connect,
    token: str,
    given: dict[str, Any],
    transport: AsgiTransport,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(OpenAI, "_sleep_for_retry", lambda *_args, **_options: None)
    client = connect(token, max_retries=2)
    transport.lost = 1
    first = create(client, given, seed=1)
    assert TrainingRun.objects.count() == 1
    second = create(client, given, seed=1)
    assert second.id != first.id, "the same request by intent is another job"
    transport.lost = 1
    assert create(client, given, seed=1).id not in (first.id, second.id)
    assert TrainingRun.objects.count() == 3


def test_retry_of_another_token_starts_its_own_job(
    connect: Connect, client: OpenAI, given: dict[str, Any], project: Project, ed: User
) -> None:
    create(client, given, seed=1)
    other = client_of(connect, project, ed)
    create(other, given, seed=1, extra_headers={"x-stainless-retry-count": "1"})
    assert TrainingRun.objects.count() == 2


def test_idempotency_key_makes_one_job(client: OpenAI, given: dict[str, Any]) -> None:
    key = {"Idempotency-Key": "one"}
    jobs = [create(client, given, seed=1, extra_headers=key).id for _try in range(2)]
    assert len(set(jobs)) == TrainingRun.objects.count() == 1
    with pytest.raises(openai.BadRequestError) as refused:
        create(client, given, seed=2, extra_headers=key)
    assert refused.value.param == "Idempotency-Key"


def test_integrations_leave_a_warning(client: OpenAI, given: dict[str, Any]) -> None:
    create(client, given, integrations=[{"type": "wandb", "wandb": {"project": "x"}}])
    job = create(client, given, integrations=[])
    (warning,) = [event for event in JobEvent.objects.all() if event.level == "warn"]
    assert "integrations" in warning.text
    assert f"ftjob-{TrainingRun.objects.latest('pk').pk}" == job.id


def test_status_has_six_words(client: OpenAI, run: TrainingRun) -> None:
    def status() -> str:
        return client.fine_tuning.jobs.retrieve(f"ftjob-{run.pk}").status

    assert status() == "queued"
    job = start_training(run)
    assert status() == "running"
    job.update_progress(phase="tokenizing")
    assert status() == "validating_files"
    job.interrupt("drained", counts_as_failure=False)
    assert status() == "queued"
    run.end("failed", step=5, code="diverged", message="The loss is not a number.")
    failed = client.fine_tuning.jobs.retrieve(f"ftjob-{run.pk}")
    assert failed.status == "failed"
    assert failed.error
    assert failed.error.to_dict() == {
        "code": "diverged",
        "message": "The loss is not a number.",
        "param": None,
    }


def test_finished_job_names_model_and_results(client: OpenAI, adapter: Adapter) -> None:
    run = adapter.run
    job = client.fine_tuning.jobs.retrieve(f"ftjob-{run.pk}")
    assert job.status == "succeeded"
    assert job.fine_tuned_model == f"ft:example/tiny:support:triage:{adapter.pk}"
    assert job.result_files == [f"file-metrics-{run.pk}", f"file-adapter-{run.pk}"]
    assert job.finished_at
    assert job.finished_at >= job.created_at
    assert job.estimated_finish is None


def test_list_pages_newest_first(
    client: OpenAI,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
    django_assert_max_num_queries: Any,
) -> None:
    runs = [make_run(project, dataset, base_model) for _run in range(5)]
    publish(runs[0])
    expected = [f"ftjob-{run.pk}" for run in reversed(runs)]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=2)] == expected
    with django_assert_max_num_queries(12):
        page = client.fine_tuning.jobs.list()
    assert ([job.id for job in page.data], page.has_more) == (expected, False)
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.list(after="file-1")
    assert refused.value.param == "after"


def test_metadata_filters_the_list(
    client: OpenAI, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    pairs: list[dict[str, str]] = [{"team": "a", "0": "x"}, {"team": "b", '"$.x__y': "%"}, {}]
    ids = []
    for metadata in pairs:
        run = make_run(project, dataset, base_model)
        TrainingRun.objects.filter(pk=run.pk).update(metadata=metadata)
        ids.append(f"ftjob-{run.pk}")

    def found(**options: Any) -> list[str]:
        return [job.id for job in client.fine_tuning.jobs.list(**options)]

    assert found(metadata={"team": "a"}) == found(metadata={"0": "x"}) == ids[:1]
    assert found(metadata={'"$.x__y': "%"}) == ids[1:2]
    assert found(metadata={"team": "a", "0": "y"}) == found(metadata={"team": "a\x00"}) == []
    assert found(extra_query={"metadata": "null"}) == ids[2:]
    with pytest.raises(openai.BadRequestError) as refused:
        found(extra_query={"metadata": "team"})
    assert refused.value.param == "metadata"


def test_cancel_may_be_repeated(client: OpenAI, run: TrainingRun) -> None:
    jobs = client.fine_tuning.jobs
    assert [jobs.cancel(f"ftjob-{run.pk}").status for _try in range(2)] == ["cancelled"] * 2
    assert not JobEvent.objects.filter(job=run.job, event="cancel").exists()
    with pytest.raises(openai.ConflictError) as refused:
        jobs.resume(f"ftjob-{run.pk}")
    assert refused.value.code == "not_resumable"


def test_paused_job_is_resumed_from_its_checkpoint(client: OpenAI, run: TrainingRun) -> None:
    jobs, name = client.fine_tuning.jobs, f"ftjob-{run.pk}"
    job = start_training(run)
    make_checkpoint(job, 5)
    assert [jobs.pause(name).status for _try in range(2)] == ["running"] * 2
    job.refresh_from_db()
    assert (job.state, job.keep) == ("cancelling", "checkpoint")
    job.complete_stop()
    assert jobs.pause(name).status == "cancelled"
    assert jobs.resume(name).status == "queued"
    assert jobs.resume(name, extra_headers={"x-stainless-retry-count": "1"}).status == "queued"
    with pytest.raises(openai.ConflictError):
        jobs.resume(name)


def test_finished_job_is_not_stopped(client: OpenAI, adapter: Adapter) -> None:
    for act in (client.fine_tuning.jobs.cancel, client.fine_tuning.jobs.pause):
        with pytest.raises(openai.ConflictError) as refused:
            act(f"ftjob-{adapter.run_id}")
        assert refused.value.code == "already_ended"


def test_others_see_no_job(connect: Connect, run: TrainingRun, otto: User, other_project: Project) -> None:
    jobs = client_of(connect, other_project, otto).fine_tuning.jobs
    assert list(jobs.list()) == []
    for act in (jobs.retrieve, jobs.cancel, jobs.pause, jobs.resume, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError):
            act(f"ftjob-{run.pk}")
    assert Job.objects.get(pk=run.job_id).state == "queued"


@pytest.mark.parametrize("who", ["viewer", "read token"])
def test_readers_start_and_stop_nothing(
    connect: Connect, run: TrainingRun, given: dict[str, Any], project: Project, who: str
) -> None:
    reader = make_user("reader@example.org", project, Role.VIEWER if who == "viewer" else Role.EDITOR)
    scope = ApiToken.Scope.WRITE if who == "viewer" else ApiToken.Scope.READ
    client = client_of(connect, project, reader, scope=scope)
    jobs = client.fine_tuning.jobs
    assert jobs.retrieve(f"ftjob-{run.pk}").status == "queued"
    with pytest.raises(openai.PermissionDeniedError):
        create(client, given)
    for act in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.PermissionDeniedError):
            act(f"ftjob-{run.pk}")
    assert TrainingRun.objects.count() == 1
