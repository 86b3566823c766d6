"""Studies with arms that require a dedicated base: adapters on experts, and DoRA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings

from dashboard.models import BaseModel, Dataset, DatasetVersion, Project, Study, User
from dashboard.models.studies.launch import launch_study
from tests.conftest import finish as end_job
from tests.workers.conftest import engine_result
from tests.workers.recovery.test_study import WorkOff, arm, finish
from workers.contract.specs import InspectSpec


@pytest.fixture
def mixture(db: None, project: Project, tmp_path: Path) -> BaseModel:
    """A tiny mixture of experts as a base model of the project, counted by the engine."""
    folder = Path(settings.DATA_DIR) / "models" / "mixture"
    build = (
        "import sys, pathlib, tests.tiny_model as t; "
        "t.build_tiny_model(pathlib.Path(sys.argv[1]), model_type='mixtral', num_local_experts=4)"
    )
    subprocess.run([sys.executable, "-c", build, str(folder)], check=True, cwd=settings.BASE_DIR, timeout=120)
    base = BaseModel.objects.create(
        project=project,
        source=BaseModel.Source.FOLDER,
        folder="mixture",
        name="Mixture",
        hub_id="example/mixture",
    )
    end_job(base.inspect())
    base.record_inspection(engine_result("inspect", InspectSpec(path=str(folder)), tmp_path / "inspect"))
    return BaseModel.objects.get(pk=base.pk)


def launch(project: Project, by: User, base: BaseModel, dataset: Dataset, **plan: object) -> Study:
    version = dataset.newest_ready()
    assert isinstance(version, DatasetVersion)
    return launch_study(
        project=project,
        by=by,
        dataset_version=version,
        base_model=base,
        name="Alone",
        seeds=[1],
        **plan,  # type: ignore[arg-type]
    )


@pytest.mark.proof
def test_arm_on_experts_is_compared_with_attention(
    project: Project, ed: User, mixture: BaseModel, real_dataset: Dataset, work_off: WorkOff
) -> None:
    study = launch(
        project,
        ed,
        mixture,
        real_dataset,
        arms=[arm("efficient"), arm("attention"), arm("quality")],
        learning_rates=[1e-3, 1e-2],
    )
    study = finish(study, work_off)
    assert study.state == "succeeded"
    assert [one.error for one in study.arms.all()] == [None] * 3
    assert len(study.result.comparisons) == 2
    alone = {one.name: one.is_measured_alone for one in study.arms.all()}
    assert alone == {"efficient": False, "attention": False, "quality": True}
    assert all(run.measured["peak_memory_bytes"] for run in study.final_runs())


@pytest.mark.proof
@pytest.mark.slow
def test_dora_is_compared_with_lora(
    project: Project, ed: User, real_base: BaseModel, real_dataset: Dataset, work_off: WorkOff
) -> None:
    dora = arm("quality", use_dora=True)
    plans = [arm("quality"), type(dora)("quality, DoRA", dora.config, dora.hyperparameters)]
    study = finish(launch(project, ed, real_base, real_dataset, arms=plans), work_off)
    assert study.state == "succeeded"
    assert {one.arm for one in study.result.comparisons} == {"quality, DoRA"}
    plain, with_dora = (study.arms.get(name=name).final_runs()[0] for name in ("quality", "quality, DoRA"))
    assert with_dora.job_id != plain.job_id
    sizes = [run.measured["trainable_parameters"] for run in (plain, with_dora)]
    assert sizes[1] > sizes[0], "a magnitude for each output"
