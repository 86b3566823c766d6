"""The dispatcher's rounds: publishing, leading, recovering lost jobs. No broker is needed to be right."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from django.db.models import F
from django.utils import timezone
from redis import Redis

from dashboard.management.commands import dispatch
from dashboard.management.commands.dispatch import Dispatcher
from dashboard.models import BaseModel, Dataset, Job, Outbox, Project, State, TrainingRun, User, WorkerNode
from dashboard.models.jobs.job_state import db_now
from tests.conftest import finish, make_base_model, make_run
from tests.workers.conftest import claim
from workers.supervision.orphaned_jobs import holder
from workers.supervision.process_identity import birth, here

AGO = timedelta(minutes=10)


@pytest.fixture
def dispatcher(db: None) -> Dispatcher:
    """One that has led for a while and has no slow work to do."""
    dispatcher = Dispatcher()
    dispatcher.register()
    WorkerNode.objects.update(grants_grace_until=None)
    dispatcher.leads = True
    return dispatcher


def run_round(dispatcher: Dispatcher) -> None:
    """Run each chore of the queue once."""
    for chore in dispatcher.queue_chores:
        chore.run()


def submit(project: Project) -> Job:
    return Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=None)


def test_it_publishes_each_wake_up_once(dispatcher: Dispatcher, project: Project, broker: Redis) -> None:
    job = submit(project)
    assert (dispatcher.publish(), dispatcher.publish()) == (1, 0)
    (message,) = broker.lrange("graftworks:cpu", 0, -1)
    body = json.loads(base64.b64decode(json.loads(message)["body"]))
    assert body[:2] == [[job.pk], {}], "the payload is the id and nothing else"


def test_it_keeps_wake_ups_while_the_broker_is_away(dispatcher: Dispatcher, project: Project) -> None:
    job = submit(project)
    assert dispatcher.publish() == 0
    assert Outbox.objects.unsent().get().job == job
    since = WorkerNode.objects.get(name=dispatcher.name).broker_silent_since
    assert since, "pages can say so without asking the broker"
    dispatcher.next_broker_ping = 0
    dispatcher.publish()
    assert WorkerNode.objects.get(name=dispatcher.name).broker_silent_since == since


def test_it_notes_that_the_broker_is_back(dispatcher: Dispatcher, project: Project, broker: Redis) -> None:
    WorkerNode.objects.filter(name=dispatcher.name).update(broker_silent_since=db_now(-AGO))
    dispatcher.publish()
    assert WorkerNode.objects.get(name=dispatcher.name).broker_silent_since is None


def test_one_that_does_not_lead_publishes_nothing(dispatcher: Dispatcher, project: Project) -> None:
    submit(project)
    dispatcher.leads = False
    assert dispatcher.publish() == 0
    assert Outbox.objects.unsent().count() == 1


def test_only_one_of_two_leads(dispatcher: Dispatcher) -> None:
    WorkerNode.objects.register("dispatcher-other@host", kind=WorkerNode.Kind.DISPATCHER, host="host", pid=1)
    assert WorkerNode.objects.acquire_lead(dispatcher.name)
    assert not WorkerNode.objects.acquire_lead("dispatcher-other@host")
    dispatcher.leave()
    assert WorkerNode.objects.acquire_lead("dispatcher-other@host")


@pytest.mark.django_db(transaction=True)
def test_two_that_find_the_lead_free_at_once_do_not_both_lead() -> None:
    names = ["dispatcher-1@host", "dispatcher-2@host"]
    for name in names:
        WorkerNode.objects.register(name, kind=WorkerNode.Kind.DISPATCHER, host="host", pid=1)

    def lead(name: str) -> bool:
        start.wait()
        try:
            return WorkerNode.objects.acquire_lead(name)
        finally:
            connection.close()

    for _round in range(10):
        WorkerNode.objects.update(leads_until=None)
        start = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(lead, names)) == [False, True]


def test_it_takes_over_from_a_leader_whose_lease_has_run_out(dispatcher: Dispatcher) -> None:
    WorkerNode.objects.register("dispatcher-other@host", kind=WorkerNode.Kind.DISPATCHER, host="host", pid=1)
    WorkerNode.objects.filter(name="dispatcher-other@host").update(leads_until=db_now(-AGO))
    assert WorkerNode.objects.acquire_lead(dispatcher.name)


def test_it_recovers_a_job_whose_lease_has_run_out(dispatcher: Dispatcher, run: TrainingRun) -> None:
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-AGO))
    run_round(dispatcher)
    job.refresh_from_db()
    assert job.state == State.INTERRUPTED
    Job.objects.filter(pk=job.pk).update(run_after=db_now(-AGO))
    run_round(dispatcher)
    job.refresh_from_db()
    assert job.state == State.QUEUED


def test_failing_chore_holds_up_no_other() -> None:
    stop, ran = threading.Event(), list[str]()

    def break_down() -> None:
        raise FileNotFoundError

    def succeed() -> None:
        ran.append("succeed")
        stop.set()

    dispatch.run_chores((dispatch.Chore(break_down), dispatch.Chore(succeed)), stop)
    assert ran == ["succeed"]


def test_it_spares_a_job_whose_holder_came_back_in_time(
    dispatcher: Dispatcher, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-AGO))
    found = Job.objects.with_expired_lease().get()
    job.renew_lease()
    dispatcher.recover(found)
    job.refresh_from_db()
    assert job.state == State.STARTING


def test_it_ends_a_lost_job_that_was_stopping(dispatcher: Dispatcher, run: TrainingRun, ed: User) -> None:
    job = claim("gpu")
    job.request_cancel(ed)
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-AGO))
    run_round(dispatcher)
    run.refresh_from_db()
    assert run.state == "cancelled"


@pytest.fixture
def late(run: TrainingRun) -> Job:
    """A job whose lease has run out, of a worker on another machine."""
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-AGO), host="elsewhere/aa/bb")
    return job


def state_of(job: Job) -> str:
    return Job.objects.get(pk=job.pk).state


def let_time_pass() -> None:
    """The time in which holders may report back is over, and the lead is free."""
    WorkerNode.objects.exclude(grants_grace_until=None).update(
        grants_grace_until=db_now(timedelta(seconds=-1))
    )
    WorkerNode.objects.update(leads_until=None)


def another(name: str = "dispatcher-2@elsewhere") -> Dispatcher:
    """One that starts now, with nothing in its memory."""
    dispatcher = Dispatcher()
    dispatcher.name = name
    return dispatcher


def test_it_expires_nothing_right_after_it_or_the_database_was_away(
    dispatcher: Dispatcher, late: Job
) -> None:
    WorkerNode.objects.update(heartbeat_at=db_now(-AGO))
    run_round(dispatcher)
    assert state_of(late) == State.STARTING
    let_time_pass()
    run_round(dispatcher)
    assert state_of(late) == State.INTERRUPTED


def test_one_that_starts_where_none_was_at_work_spares_holders_for_a_whole_lease(
    dispatcher: Dispatcher, late: Job
) -> None:
    WorkerNode.objects.update(heartbeat_at=db_now(-AGO))
    run_round(another())
    assert state_of(late) == State.STARTING
    left = WorkerNode.objects.get(name="dispatcher-2@elsewhere").grants_grace_until
    assert left is not None
    assert 80 < (left - timezone.now()).total_seconds() < 100
    let_time_pass()
    run_round(another())
    assert state_of(late) == State.INTERRUPTED


def test_the_very_first_one_spares_holders_too(late: Job) -> None:
    run_round(another())
    assert state_of(late) == State.STARTING


def test_one_that_is_killed_meanwhile_does_not_cut_that_time_short(late: Job) -> None:
    run_round(another("dispatcher-1@elsewhere"))
    WorkerNode.objects.update(leads_until=None)
    second = another()
    run_round(second)
    assert second.leads
    assert state_of(late) == State.STARTING


def test_one_that_comes_back_second_does_not_either(dispatcher: Dispatcher, late: Job) -> None:
    WorkerNode.objects.register("dispatcher-1@elsewhere", kind=WorkerNode.Kind.DISPATCHER, host="box", pid=1)
    WorkerNode.objects.update(heartbeat_at=db_now(-AGO), leads_until=None)
    WorkerNode.objects.record_dispatcher_heartbeat("dispatcher-1@elsewhere")
    run_round(dispatcher)
    assert dispatcher.leads
    assert state_of(late) == State.STARTING


def test_one_that_starts_again_in_the_usual_time_recovers_at_once(late: Job) -> None:
    WorkerNode.objects.register("dispatcher-1@elsewhere", kind=WorkerNode.Kind.DISPATCHER, host="box", pid=1)
    WorkerNode.objects.update(heartbeat_at=db_now(timedelta(seconds=-20)))
    run_round(another())
    assert state_of(late) == State.INTERRUPTED


def test_one_that_slept_beside_another_recovers_at_once(dispatcher: Dispatcher, late: Job) -> None:
    WorkerNode.objects.update(heartbeat_at=db_now(-AGO))
    WorkerNode.objects.register("dispatcher-1@elsewhere", kind=WorkerNode.Kind.DISPATCHER, host="box", pid=1)
    run_round(dispatcher)
    assert state_of(late) == State.INTERRUPTED, "holders could reach the database all the time"


def test_one_that_is_held_up_in_the_middle_of_its_round_expires_nothing(
    dispatcher: Dispatcher, late: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep() -> None:
        WorkerNode.objects.update(heartbeat_at=db_now(-AGO))

    with monkeypatch.context() as asleep:
        asleep.setattr(dispatch, "release_orphaned_jobs", sleep)
        run_round(dispatcher)
    assert state_of(late) == State.STARTING
    run_round(dispatcher)
    assert state_of(late) == State.STARTING


def test_a_clock_of_the_database_that_is_set_forward_costs_nobody_the_lease(
    dispatcher: Dispatcher, run: TrainingRun
) -> None:
    job = claim("gpu")
    hour = timedelta(hours=1)
    for rows, field in ((Job.objects.filter(pk=job.pk), "lease_until"), (WorkerNode.objects, "heartbeat_at")):
        rows.update(**{field: F(field) - hour})
    run_round(dispatcher)
    assert state_of(job) == State.STARTING
    assert job.renew_lease()
    let_time_pass()
    run_round(dispatcher)
    assert state_of(job) == State.STARTING


def test_a_machine_that_starts_again_gets_its_own_jobs_back_at_once(run: TrainingRun) -> None:
    place = here()
    assert place
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(lease_until=db_now(-AGO), host=f"{place.earlier_starts}before")
    with pytest.MonkeyPatch.context() as young:
        young.setattr("workers.supervision.orphaned_jobs.uptime", lambda: 20.0)
        run_round(another())
    assert state_of(job) == State.INTERRUPTED
    assert WorkerNode.objects.granting_grace().exists(), "jobs of other machines still have time"


def test_it_wakes_an_idle_worker_again(dispatcher: Dispatcher, project: Project) -> None:
    job = submit(project)
    Outbox.objects.update(sent_at=db_now(-AGO))
    Job.objects.filter(pk=job.pk).update(run_after=db_now(-AGO))
    dispatcher.wake_again()
    assert not job.outbox.filter(sent_at=None).exists(), "no node is there to be woken"
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    dispatcher.wake_again()
    assert job.outbox.filter(sent_at=None).count() == 1


def test_it_does_not_pile_up_wake_ups_that_cannot_go_out(dispatcher: Dispatcher, project: Project) -> None:
    job = submit(project)
    Job.objects.filter(pk=job.pk).update(run_after=db_now(-AGO))
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    for _round in range(2):
        dispatcher.wake_again()
    assert job.outbox.count() == 1


@pytest.mark.parametrize(("seconds", "is_woken"), [(10, False), (40, True)])
def test_a_wake_up_that_nobody_followed_is_sent_again_after_half_a_minute_and_no_sooner(
    dispatcher: Dispatcher, project: Project, seconds: int, is_woken: bool
) -> None:
    job, ago = submit(project), db_now(-timedelta(seconds=seconds))
    WorkerNode.objects.register("cpu@host", queue="cpu", host="host", pid=1)
    Job.objects.filter(pk=job.pk).update(run_after=db_now(-AGO))
    Outbox.objects.update(sent_at=ago)
    dispatcher.wake_again()
    Outbox.objects.mark_sent(job.outbox.unsent().values_list("pk", flat=True))
    dispatcher.wake_again()
    assert job.outbox.count() == 1 + is_woken, "the second one has half a minute too"


def test_its_tick_notes_the_disk_and_the_clock(dispatcher: Dispatcher) -> None:
    mine = WorkerNode.objects.filter(name=dispatcher.name)
    assert mine.values_list("free_bytes", "clock_ahead").get() == (None, None)
    dispatcher.tick()
    free_bytes, clock_ahead = mine.values_list("free_bytes", "clock_ahead").get()
    assert free_bytes == pytest.approx(shutil.disk_usage(settings.DATA_DIR).free, rel=0.2)
    assert clock_ahead == pytest.approx(0, abs=2)


def test_each_beat_is_a_sign_of_life_and_the_first_one_ticks(dispatcher: Dispatcher) -> None:
    mine = WorkerNode.objects.filter(name=dispatcher.name)
    mine.update(heartbeat_at=db_now(-AGO))
    run_round(dispatcher)
    assert mine.alive().exclude(free_bytes=None).exclude(clock_ahead=None).exists()


def test_it_goes_on_when_a_job_is_cancelled_under_its_hands(
    dispatcher: Dispatcher, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(project)
    stale = Job.objects.filter(pk=job.pk)
    monkeypatch.setattr(type(stale), "due_for_retry", lambda _self: stale)
    run_round(dispatcher)


def test_it_has_the_bundled_model_inspected_at_first_start(
    dispatcher: Dispatcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(settings, "BUNDLED_MODEL_DIR", tmp_path)
    for _round in range(2):
        dispatcher.tick()
    assert BaseModel.objects.get(source="bundled").job is not None
    assert Job.objects.filter(kind="inspect").count() == 1


@pytest.fixture
def counted(project: Project, tmp_path: Path) -> BaseModel:
    """A base model whose files are at hand, counted by these libraries."""
    base_model = make_base_model(project)
    census = base_model.census or {}
    census["versions"] = {name: version(name) for name in ("peft", "transformers")}
    BaseModel.objects.filter(pk=base_model.pk).update(census=census, path=str(tmp_path))
    base_model.refresh_from_db()
    return base_model


def inspections(base_model: BaseModel) -> int:
    return Job.objects.filter(kind="inspect", project=base_model.project).count()


def test_a_model_counted_by_these_libraries_is_left_alone(dispatcher: Dispatcher, counted: BaseModel) -> None:
    before = inspections(counted)
    dispatcher.tick()
    assert inspections(counted) == before


def test_a_model_counted_by_another_version_is_counted_again_once(
    dispatcher: Dispatcher, counted: BaseModel
) -> None:
    before = inspections(counted)
    BaseModel.objects.filter(pk=counted.pk).update(census={**(counted.census or {}), "version": 1})
    for _round in range(2):
        dispatcher.tick()
    assert inspections(counted) == before + 1
    assert BaseModel.objects.get(pk=counted.pk).job.spec["path"] == counted.path


def test_a_model_counted_by_other_libraries_is_counted_again_once_per_start(
    dispatcher: Dispatcher, counted: BaseModel
) -> None:
    before = inspections(counted)
    census = {**(counted.census or {}), "versions": {"peft": "0.1", "transformers": "4.0"}}
    BaseModel.objects.filter(pk=counted.pk).update(census=census)
    dispatcher.started = timezone.now()
    dispatcher.tick()
    assert inspections(counted) == before + 1
    finish(BaseModel.objects.get(pk=counted.pk).job)  # by a worker that has those libraries still
    dispatcher.tick()
    assert inspections(counted) == before + 1


def test_a_model_whose_files_are_gone_is_left_as_it_is(dispatcher: Dispatcher, counted: BaseModel) -> None:
    before = inspections(counted)
    BaseModel.objects.filter(pk=counted.pk).update(census={"version": 1}, path="/nowhere")
    dispatcher.tick()
    assert inspections(counted) == before


def make_nodes(*names: str) -> None:
    for name in names:
        WorkerNode.objects.register(name, queue="cpu", host="host", pid=1)


def test_an_idle_worker_is_woken_past_a_paused_one(dispatcher: Dispatcher, project: Project) -> None:
    make_nodes("paused@host", "idle@host")
    WorkerNode.objects.get(name="paused@host").pause(by="Mara")
    job = submit(project)
    Outbox.objects.mark_sent(job.outbox.values_list("pk", flat=True))
    dispatcher.wake_past_paused()
    dispatcher.wake_past_paused()
    assert job.outbox.filter(sent_at=None).count() == 1


def test_a_worker_that_can_is_woken_past_one_that_cannot(
    dispatcher: Dispatcher, project: Project, run: TrainingRun
) -> None:
    job = run.job
    assert job is not None
    Job.objects.filter(pk=job.pk).update(needs_4bit=True)
    for name in ("cpu@host", "cuda@host"):
        WorkerNode.objects.register(name, queue="gpu", host="host", pid=1)
    Outbox.objects.mark_sent(Outbox.objects.values_list("pk", flat=True))
    dispatcher.wake_past_paused()
    assert not job.outbox.filter(sent_at=None).exists(), "nobody could take it"
    WorkerNode.objects.register("cuda@host", queue="gpu", host="host", pid=1, loads_4bit=True)
    dispatcher.wake_past_paused()
    assert job.outbox.filter(sent_at=None).count() == 1


@pytest.fixture
def packed(run: TrainingRun, project: Project, dataset: Dataset, base_model: BaseModel) -> Job:
    """A job in 4 bits that waits while the only worker for it has another one; its neighbour is idle."""
    WorkerNode.objects.register("cpu@host", queue="gpu", host="host", pid=1)
    WorkerNode.objects.register("cuda@host", queue="gpu", host="host", pid=1, loads_4bit=True)
    assert Job.objects.claim("gpu", worker="cuda@host", slot="cuda@host", **holder()) == run.job
    job = make_run(project, dataset, base_model, name="Packed").job
    assert job is not None
    Job.objects.filter(pk=job.pk).update(needs_4bit=True)
    Outbox.objects.mark_sent(Outbox.objects.values_list("pk", flat=True))
    return job


def test_nobody_is_woken_for_what_only_a_busy_worker_can_do(dispatcher: Dispatcher, packed: Job) -> None:
    dispatcher.wake_past_paused()
    assert not Outbox.objects.unsent().exists()
    Outbox.objects.update(sent_at=db_now(-AGO))
    Job.objects.filter(pk=packed.pk).update(run_after=db_now(-AGO))
    dispatcher.wake_again()
    assert not Outbox.objects.unsent().exists(), "nor once each half minute, as if a wake-up had been lost"
    WorkerNode.objects.filter(name="cuda@host").update(processes=2)
    dispatcher.wake_past_paused()
    assert packed.outbox.filter(sent_at=None).count() == 1, "it has a place left"


def test_a_lost_wake_up_of_what_an_idle_worker_can_do_is_sent_again(
    dispatcher: Dispatcher, packed: Job
) -> None:
    WorkerNode.objects.filter(name="cuda@host").update(processes=2)
    Outbox.objects.update(sent_at=db_now(-AGO))
    Job.objects.filter(pk=packed.pk).update(run_after=db_now(-AGO))
    dispatcher.wake_again()
    assert packed.outbox.filter(sent_at=None).count() == 1


def test_nobody_is_woken_for_what_only_a_paused_worker_can_do(
    dispatcher: Dispatcher, packed: Job, run: TrainingRun
) -> None:
    assert run.job
    run.job.request_cancel()
    run.job.move("stopped")
    WorkerNode.objects.get(name="cuda@host").pause(by="Mara")
    dispatcher.wake_past_paused()
    assert not Outbox.objects.unsent().exists()


def test_it_sends_no_wake_up_where_all_workers_are_paused(dispatcher: Dispatcher, project: Project) -> None:
    make_nodes("paused@host")
    WorkerNode.objects.get(name="paused@host").pause(by="Mara")
    job = submit(project)
    Outbox.objects.update(sent_at=db_now(-AGO))
    Job.objects.filter(pk=job.pk).update(run_after=db_now(-AGO))
    dispatcher.wake_past_paused()
    dispatcher.wake_again()
    assert not job.outbox.filter(sent_at=None).exists()


def test_it_ends_the_lead_of_a_killed_predecessor_of_its_own_place(dispatcher: Dispatcher) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = {"gone": f"dispatcher-{dead.pid}@{here()}", "elsewhere": f"dispatcher-{dead.pid}@box/aa/bb"}
    for name in names.values():
        WorkerNode.objects.register(name, kind=WorkerNode.Kind.DISPATCHER, host=dispatcher.host, pid=dead.pid)
    dispatcher.register()
    stopped = WorkerNode.objects.exclude(stopped_at=None).values_list("name", flat=True)
    assert list(stopped) == [names["gone"]], "a container of the same host name has numbers of its own"


def test_it_releases_the_job_of_a_dead_process_at_once(dispatcher: Dispatcher, run: TrainingRun) -> None:
    dead = subprocess.Popen(["true"])
    job = claim("gpu")
    Job.objects.filter(pk=job.pk).update(pid=dead.pid, pid_started=birth(dead.pid))
    dead.wait()
    run_round(dispatcher)
    job.refresh_from_db()
    assert (job.state, job.events.latest("pk").text) == (State.INTERRUPTED, "Its worker process is gone.")
