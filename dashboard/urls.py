"""All routes, grouped by object. A route's name consists of object and verb."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.urls import path, re_path

from dashboard import api
from dashboard.api import openai
from dashboard.views.accounts import (
    invitations,
    memberships,
    projects,
    setup,
    sign_in,
    team,
    tokens,
    webhooks,
)
from dashboard.views.adapters import adapters, exports, playground
from dashboard.views.catalog import base_models, datasets, target_module_configs
from dashboard.views.evaluations import evaluations, judge_evaluations, prompt_sets, try_out_links, votes
from dashboard.views.jobs import compute_budgets, queue, workers
from dashboard.views.operations import health, home, settings, storage
from dashboard.views.studies import (
    compare,
    decisions,
    saved_views,
    share_links,
    studies,
    study_items,
    study_reports,
    study_results,
)
from dashboard.views.training import fine_tune, metric_series, run_list, run_selection, training_runs

handler400 = "dashboard.outage.bad_request"
handler500 = "dashboard.outage.server_error"


@login_not_required
def alive(_request: HttpRequest) -> HttpResponse:
    """Answer launchers and proxies that ask whether the web process runs."""
    return HttpResponse("ok", content_type="text/plain")


urlpatterns = [
    path("", home.index, name="home"),
    path("running/", home.progress, name="home-progress"),
    path("healthz/", alive, name="health"),
    # Accounts
    path("set-up/", setup.create, name="set-up"),
    path("sign-in/", sign_in.login, name="account_login"),
    path("sign-out/", sign_in.logout, name="account_logout"),
    path("sign-in/closed/", sign_in.inactive, name="account_inactive"),
    path("account/password/", sign_in.password_change, name="account_change_password"),
    path("account/password/first/", sign_in.password_set, name="account_set_password"),
    path("password-reset/", sign_in.password_reset, name="account_reset_password"),
    path("password-reset/sent/", sign_in.password_reset_done, name="account_reset_password_done"),
    # The key has hyphens of its own, so the first part must not be greedy about them.
    re_path(
        r"^password-reset/(?P<uidb36>[0-9A-Za-z]+)-(?P<key>.+)/$",
        sign_in.password_reset_from_key,
        name="account_reset_password_from_key",
    ),
    path(
        "password-reset/changed/",
        sign_in.password_reset_from_key_done,
        name="account_reset_password_from_key_done",
    ),
    # Projects and members
    path("projects/new/", projects.create, name="project-create"),
    path("projects/open/", projects.open, name="project-open"),
    path("team/", team.index, name="team-index"),
    path("team/members/<int:pk>/role/", memberships.change, name="membership-change"),
    path("team/members/<int:pk>/remove/", memberships.remove, name="membership-remove"),
    path("team/invitations/", invitations.create, name="invitation-create"),
    path("team/invitations/<int:pk>/revoke/", invitations.revoke, name="invitation-revoke"),
    path("invitations/<str:secret>/", invitations.accept, name="invitation-accept"),
    # Datasets
    path("datasets/", datasets.index, name="dataset-index"),
    path("datasets/new/", datasets.create, name="dataset-create"),
    path("datasets/sample/", datasets.sample, name="dataset-sample"),
    path("datasets/<int:pk>/", datasets.detail, name="dataset-detail"),
    path("datasets/<int:pk>/progress/", datasets.progress, name="dataset-progress"),
    path("datasets/<int:pk>/import-again/", datasets.import_again, name="dataset-import-again"),
    path("datasets/<int:pk>/report/", datasets.report, name="dataset-report"),
    # Base models
    path("settings/base-models/", base_models.index, name="base-model-index"),
    path("settings/base-models/new/", base_models.create, name="base-model-create"),
    path("settings/base-models/<int:pk>/", base_models.detail, name="base-model-detail"),
    path("settings/base-models/<int:pk>/progress/", base_models.progress, name="base-model-progress"),
    path("settings/base-models/<int:pk>/inspect/", base_models.inspect, name="base-model-inspect"),
    # Target modules
    path("target-modules/", target_module_configs.index, name="target-module-config-index"),
    path("target-modules/new/", target_module_configs.create, name="target-module-config-create"),
    path("target-modules/new/explain/", target_module_configs.explain, name="target-module-config-explain"),
    path("target-modules/<int:pk>/", target_module_configs.detail, name="target-module-config-detail"),
    path("target-modules/<int:pk>/export/", target_module_configs.export, name="target-module-config-export"),
    # Training runs
    path("fine-tune/", fine_tune.create, name="training-run-create"),
    path("fine-tune/presets/", fine_tune.presets, name="training-run-presets"),
    path("fine-tune/forecast/", fine_tune.forecast, name="training-run-forecast"),
    path("runs/", run_list.index, name="training-run-index"),
    path("runs/runs.csv", run_list.export, name="training-run-csv"),
    path("runs/states/", run_list.states, name="training-run-states"),
    path("runs/selection/", run_selection.select, name="training-run-selection"),
    path("runs/<int:pk>/", training_runs.detail, name="training-run-detail"),
    path("runs/<int:pk>/progress/", training_runs.progress, name="training-run-progress"),
    path("runs/<int:pk>/samples/", training_runs.samples, name="training-run-samples"),
    path("runs/<int:pk>/log/", training_runs.log, name="training-run-log"),
    path("runs/<int:pk>/cancel/", training_runs.cancel, name="training-run-cancel"),
    path("runs/<int:pk>/notes/", run_selection.annotate, name="training-run-annotate"),
    path("runs/<int:pk>/resume/", training_runs.resume, name="training-run-resume"),
    path("runs/<int:pk>/score/", evaluations.reevaluate_run, name="training-run-score"),
    path("runs/<int:pk>/judge/", judge_evaluations.judge_run, name="training-run-judge"),
    path("runs/<int:pk>/votes/", votes.vote_on_run, name="training-run-vote"),
    path("runs/<int:pk>/stream/", metric_series.stream, name="training-run-stream"),
    path("runs/<int:pk>/metrics/", metric_series.metrics, name="training-run-metrics"),
    path("runs/<int:pk>/metrics.csv", metric_series.metrics_csv, name="training-run-metrics-csv"),
    # Studies
    path("studies/", studies.index, name="study-index"),
    path("studies/new/", studies.create, name="study-create"),
    path("studies/new/arms/", studies.arms, name="study-arms"),
    path("studies/new/plan/", studies.plan, name="study-plan"),
    path("studies/<int:pk>/", studies.detail, name="study-detail"),
    path("studies/<int:pk>/grid/", studies.grid, name="study-grid"),
    path("studies/<int:pk>/cancel/", studies.cancel, name="study-cancel"),
    path("studies/<int:pk>/seeds/", studies.seeds, name="study-seeds"),
    path("studies/<int:pk>/differences.csv", study_results.deltas_csv, name="study-deltas-csv"),
    path("studies/<int:pk>/scores.csv", study_results.scores_csv, name="study-scores-csv"),
    path("studies/<int:pk>/study.json", study_results.whole_json, name="study-json"),
    path("studies/<int:pk>/report/", study_reports.report, name="study-report"),
    path("studies/<int:pk>/answers/", study_items.items, name="study-items"),
    path("studies/<int:pk>/score/", evaluations.reevaluate_study, name="study-score"),
    path("studies/<int:pk>/judge/", judge_evaluations.judge_study, name="study-judge"),
    path("studies/<int:pk>/votes/", votes.vote_on_study, name="study-vote"),
    path("studies/<int:pk>/decisions/", decisions.create, name="decision-create"),
    path("studies/<int:pk>/share/", share_links.create, name="share-link-create"),
    path("share-links/<int:pk>/revoke/", share_links.revoke, name="share-link-revoke"),
    path("shared/<str:secret>/", share_links.open, name="share-link-open"),
    # Compare
    path("compare/", compare.index, name="compare"),
    path("compare/answers/", compare.items, name="compare-items"),
    path("compare/curves/", compare.loss_curves, name="compare-curves"),
    path("compare/runs/", compare.offered, name="compare-runs"),
    path("compare/compare.csv", compare.export, name="compare-csv"),
    path("compare/compare.json", compare.numbers, name="compare-json"),
    path("views/new/", saved_views.create, name="saved-view-create"),
    path("views/<int:pk>/delete/", saved_views.delete, name="saved-view-delete"),
    # Adapters
    path("adapters/", adapters.index, name="adapter-index"),
    path("adapters/adapters.csv", adapters.export, name="adapter-csv"),
    path("adapters/serve/", adapters.serve, name="adapter-serve"),
    path("adapters/<int:pk>/", adapters.detail, name="adapter-detail"),
    path("adapters/<int:pk>/stage/", adapters.stage, name="adapter-stage"),
    path("adapters/<int:pk>/exports/", exports.index, name="adapter-exports"),
    path("adapters/<int:pk>/exports/new/", exports.create, name="adapter-export"),
    path("adapters/<int:pk>/pushes/new/", exports.push, name="adapter-push"),
    path("exports/<int:pk>/download/", exports.download, name="export-download"),
    path("exports/<int:pk>/delete/", exports.delete, name="export-delete"),
    path("adapters/<int:pk>/download/", adapters.download, name="adapter-download"),
    # Playground
    path("playground/", playground.index, name="playground"),
    path("playground/start/", playground.start, name="playground-start"),
    path("playground/answer/", playground.answer, name="playground-answer"),
    path("playground/vote/", playground.vote, name="playground-vote"),
    path("prompt-sets/", prompt_sets.index, name="prompt-set-index"),
    path("prompt-sets/save/", prompt_sets.save, name="prompt-set-save"),
    path("prompt-sets/<int:pk>/", prompt_sets.detail, name="prompt-set-detail"),
    path("prompt-sets/<int:pk>/answer/", prompt_sets.answer, name="prompt-set-answer"),
    path("prompt-sets/<int:pk>/delete/", prompt_sets.delete, name="prompt-set-delete"),
    path(
        "prompt-sets/<int:pk>/prompts/<int:prompt>/delete/",
        prompt_sets.delete_prompt,
        name="prompt-set-delete-prompt",
    ),
    path("try-out-links/new/", try_out_links.create, name="try-out-link-create"),
    path("try-out-links/<int:pk>/revoke/", try_out_links.revoke, name="try-out-link-revoke"),
    path("try/<str:secret>/", try_out_links.open, name="try-out-open"),
    path("try/<str:secret>/answer/", try_out_links.answer, name="try-out-answer"),
    path("try/<str:secret>/vote/", try_out_links.vote, name="try-out-vote"),
    # Workers and queue
    path("queue/", queue.index, name="queue-index"),
    path("queue/board/", queue.board, name="queue-board"),
    path("queue/<int:pk>/cancel/", queue.cancel, name="queue-cancel"),
    path("queue/<int:pk>/priority/", queue.prioritise, name="queue-prioritise"),
    path("queue/workers/<int:pk>/pause/", workers.pause, name="worker-pause"),
    path("queue/workers/<int:pk>/resume/", workers.resume, name="worker-resume"),
    # Settings
    path("settings/", settings.index, name="settings"),
    path("settings/health/", health.index, name="health-index"),
    path("settings/storage/", storage.index, name="storage-index"),
    path("settings/storage/clean-up/", storage.clean_up, name="storage-clean-up"),
    path("settings/compute-budget/", compute_budgets.index, name="compute-budget-index"),
    path("settings/compute-budget/change/", compute_budgets.change, name="compute-budget-change"),
    path("settings/tokens/", tokens.index, name="token-index"),
    path("settings/tokens/new/", tokens.create, name="token-create"),
    path("settings/tokens/<int:pk>/revoke/", tokens.revoke, name="token-revoke"),
    path("settings/webhooks/", webhooks.index, name="webhook-index"),
    path("settings/webhooks/new/", webhooks.create, name="webhook-create"),
    path("settings/webhooks/<int:pk>/delete/", webhooks.delete, name="webhook-delete"),
    path("admin/", admin.site.urls),
    # /api/v1/
    path("api/v1/", api.routes()),
    # /v1/, for OpenAI's clients
    path("v1/", openai.routes()),
]
