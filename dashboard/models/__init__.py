"""The truth: rows, their rules and their behaviour. `from dashboard.models import Adapter`."""

from dashboard.models.access import ApiToken, SetupCode
from dashboard.models.adapter import Adapter
from dashboard.models.base_model import BaseModel
from dashboard.models.calibration import Calibration
from dashboard.models.compute_budget import ComputeBudget, OverBudget
from dashboard.models.dataset import Dataset, DatasetVersion, ImportNotFailed
from dashboard.models.decision import Decision
from dashboard.models.evaluation import Evaluation, EvaluationItem
from dashboard.models.installation import Installation
from dashboard.models.job import Job
from dashboard.models.job_event import JobEvent
from dashboard.models.job_state import IllegalMove, State
from dashboard.models.judging import JudgeEvaluation
from dashboard.models.metric_series import MetricChunk, MetricSeries
from dashboard.models.outbox import Outbox
from dashboard.models.project import (
    Caller,
    Invitation,
    InvitationUsed,
    LastManager,
    Membership,
    Project,
    Role,
)
from dashboard.models.publication import Publication
from dashboard.models.saved_view import SavedView
from dashboard.models.scoring import ScoringTime
from dashboard.models.share_link import SHARE_DAYS, ShareLink
from dashboard.models.storage import CleanUp, StorageUse
from dashboard.models.study import Study
from dashboard.models.study_arm import StudyArm
from dashboard.models.study_plan import ArmPlan
from dashboard.models.target_module_config import TargetModuleConfig
from dashboard.models.training_run import TrainingRun
from dashboard.models.user import User
from dashboard.models.vote import Vote
from dashboard.models.worker_node import WorkerNode

__all__ = [
    "SHARE_DAYS",
    "Adapter",
    "ApiToken",
    "ArmPlan",
    "BaseModel",
    "Calibration",
    "Caller",
    "CleanUp",
    "ComputeBudget",
    "Dataset",
    "DatasetVersion",
    "Decision",
    "Evaluation",
    "EvaluationItem",
    "IllegalMove",
    "ImportNotFailed",
    "Installation",
    "Invitation",
    "InvitationUsed",
    "Job",
    "JobEvent",
    "JudgeEvaluation",
    "LastManager",
    "Membership",
    "MetricChunk",
    "MetricSeries",
    "Outbox",
    "OverBudget",
    "Project",
    "Publication",
    "Role",
    "SavedView",
    "ScoringTime",
    "SetupCode",
    "ShareLink",
    "State",
    "StorageUse",
    "Study",
    "StudyArm",
    "TargetModuleConfig",
    "TrainingRun",
    "User",
    "Vote",
    "WorkerNode",
]
