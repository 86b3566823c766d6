"""The truth: rows, their rules and their behaviour. `from dashboard.models import Adapter`."""

from dashboard.models.accounts.access import ApiToken, SetupCode
from dashboard.models.accounts.project import (
    Caller,
    Invitation,
    InvitationUsed,
    LastManager,
    Membership,
    Project,
    Role,
)
from dashboard.models.accounts.user import User
from dashboard.models.adapters.adapter import Adapter
from dashboard.models.adapters.export import Export, ExportRefused
from dashboard.models.adapters.hub_push import HubPush
from dashboard.models.adapters.publication import Publication
from dashboard.models.catalog.base_model import BaseModel
from dashboard.models.catalog.dataset import Dataset, DatasetVersion, ImportNotFailed
from dashboard.models.catalog.target_module_config import TargetModuleConfig
from dashboard.models.evaluations.blind_comparison import BlindComparison
from dashboard.models.evaluations.evaluation import Evaluation
from dashboard.models.evaluations.evaluation_item import EvaluationItem
from dashboard.models.evaluations.prompt_set import PromptAnswer, PromptRefused, PromptSet, SavedPrompt
from dashboard.models.evaluations.run_score import RunScore
from dashboard.models.evaluations.try_out_link import TryOutLink
from dashboard.models.evaluations.vote import Vote
from dashboard.models.jobs.compute_budget import ComputeBudget, OverBudget
from dashboard.models.jobs.device_day import DeviceDay
from dashboard.models.jobs.job import Job
from dashboard.models.jobs.job_event import JobEvent
from dashboard.models.jobs.job_state import IllegalMove, State
from dashboard.models.jobs.outbox import Outbox
from dashboard.models.jobs.webhook import Webhook, WebhookDelivery
from dashboard.models.jobs.worker_node import WorkerNode
from dashboard.models.operations.installation import Installation
from dashboard.models.operations.storage import CleanUp, StorageUse
from dashboard.models.studies.decision import Decision
from dashboard.models.studies.plan import ArmPlan
from dashboard.models.studies.saved_view import SavedView
from dashboard.models.studies.share_link import SHARE_DAYS, ShareLink
from dashboard.models.studies.study import Study
from dashboard.models.studies.study_arm import StudyArm
from dashboard.models.training.calibration import Calibration
from dashboard.models.training.evaluation_cost import ScoringTime
from dashboard.models.training.metric_series import MetricChunk, MetricSeries
from dashboard.models.training.tag import Tag
from dashboard.models.training.training_run import TrainingRun

__all__ = [
    "SHARE_DAYS",
    "Adapter",
    "ApiToken",
    "ArmPlan",
    "BaseModel",
    "BlindComparison",
    "Calibration",
    "Caller",
    "CleanUp",
    "ComputeBudget",
    "Dataset",
    "DatasetVersion",
    "Decision",
    "DeviceDay",
    "Evaluation",
    "EvaluationItem",
    "Export",
    "ExportRefused",
    "HubPush",
    "IllegalMove",
    "ImportNotFailed",
    "Installation",
    "Invitation",
    "InvitationUsed",
    "Job",
    "JobEvent",
    "LastManager",
    "Membership",
    "MetricChunk",
    "MetricSeries",
    "Outbox",
    "OverBudget",
    "Project",
    "PromptAnswer",
    "PromptRefused",
    "PromptSet",
    "Publication",
    "Role",
    "RunScore",
    "SavedPrompt",
    "SavedView",
    "ScoringTime",
    "SetupCode",
    "ShareLink",
    "State",
    "StorageUse",
    "Study",
    "StudyArm",
    "Tag",
    "TargetModuleConfig",
    "TrainingRun",
    "TryOutLink",
    "User",
    "Vote",
    "Webhook",
    "WebhookDelivery",
    "WorkerNode",
]
