"""The expected outcome of every route and method for every caller."""

from __future__ import annotations

# Otto manages another project. Mixed views Support and has a project of their own open, which they manage.
# Root is a superuser without a membership, so its token opens nothing. API calls use a token of each caller's
# open project.
CALLERS = ("anonymous", "viewer", "editor", "manager", "otto", "mixed", "root")
# One character per caller: + allowed, ? must sign in or send a token, - forbidden (403), 0 not found (404).
RULES = {
    # Public.
    "+++++++": """
        GET health account_login account_inactive account_reset_password account_reset_password_done
        GET account_reset_password_from_key account_reset_password_from_key_done share-link-open
        GET try-out-open
        POST try-out-answer try-out-vote
        POST account_login account_logout account_reset_password account_reset_password_from_key
    """,
    # Gone as soon as an account exists; tests/dashboard/accounts/test_set_up.py covers it.
    "0000000": """
        GET set-up
        POST set-up
    """,
    # For the invited address alone; signed-in users of other addresses are refused.
    "+------": """
        GET invitation-accept
        POST invitation-accept
    """,
    # Signed in.
    "?++++++": """
        GET home account_change_password account_set_password queue-index queue-board settings
        POST account_change_password account_set_password
    """,
    # API: any valid token.
    "?+++++?": """
        GET api:openapi-json api:openapi-view api:me-detail api:base-model-index api:dataset-index
        GET api:training-run-index api:study-index api:adapter-index api:job-index api:worker-index
        GET api:compute-budget-detail api:membership-index api:invitation-index api:token-index
        GET api:export-index api:push-index
        GET openai:file-index openai:job-index openai:model-index
    """,
    # Members, about the project that they have open.
    "?+++++-": """
        GET adapter-serve home-progress team-index dataset-index base-model-index target-module-config-index
        GET training-run-presets training-run-forecast training-run-index training-run-csv
        GET training-run-states study-index study-arms study-plan compare compare-csv compare-runs
        GET adapter-index adapter-csv
        GET compute-budget-index token-index token-create playground prompt-set-index
        POST token-create playground-start playground-answer training-run-selection
    """,
    # Editors, in the project that they have open.
    "?-++++-": """
        GET dataset-create target-module-config-create training-run-create study-create
        POST dataset-create dataset-sample target-module-config-create target-module-config-explain
        POST training-run-create study-create saved-view-create prompt-set-save
    """,
    # API: tokens of editors, in their project.
    "?-++++?": """
        POST api:target-module-config-index api:dataset-index api:dataset-sample
        POST api:training-run-index api:export-index api:forecast-index api:study-index api:token-index
        POST openai:file-index openai:job-index openai:chat-index
    """,
    # Managers, in the project that they have open.
    "?--+++-": """
        GET invitation-create base-model-create webhook-index webhook-create
        POST invitation-create base-model-create compute-budget-change webhook-create
        POST try-out-link-create
    """,
    # API: tokens of managers, in their project.
    "?--+++?": """
        POST api:base-model-index api:invitation-index api:push-index
        PATCH api:compute-budget-detail
    """,
    # Managers, and superusers without a project.
    "?--++++": """
        GET health-index storage-index
        POST storage-clean-up
    """,
    # Superusers.
    "?-----+": """
        GET project-create
        POST project-create worker-pause worker-resume
    """,
    # Members of the object's project.
    "?+++0+-": """
        POST project-open
        GET dataset-detail dataset-progress dataset-report base-model-detail base-model-progress
        GET target-module-config-detail target-module-config-export training-run-detail
        GET training-run-progress training-run-samples training-run-log training-run-stream
        GET training-run-judge training-run-vote training-run-metrics training-run-metrics-csv
        GET study-detail study-grid study-deltas-csv study-scores-csv study-json study-report
        GET study-items study-judge study-vote adapter-detail adapter-download
        GET adapter-exports export-download prompt-set-detail
    """,
    # Editors of the object's project.
    "?-++0--": """
        POST dataset-import-again training-run-cancel training-run-resume training-run-score
        POST training-run-annotate training-run-judge training-run-vote study-cancel study-seeds
        POST study-score study-judge study-vote decision-create saved-view-delete
        POST adapter-export export-delete prompt-set-answer prompt-set-delete prompt-set-delete-prompt
        GET training-run-cancel
    """,
    # Editors of the object's project; administrators have their own test.
    "?-++0-0": """
        POST queue-cancel
        GET queue-cancel
    """,
    # Managers of the object's project.
    "?--+0--": """
        POST adapter-push
        POST membership-change membership-remove invitation-revoke base-model-inspect share-link-create
        POST share-link-revoke try-out-link-revoke adapter-stage queue-prioritise webhook-delete
    """,
    # The owner of the token (Ed) and managers.
    "?0++00-": """
        POST token-revoke
    """,
    # No comparison without runs in the query, no vote without blind answers; their own tests cover them.
    "?00000-": """
        GET compare-json compare-curves compare-items
        POST playground-vote
    """,
    # API: tokens of the object's project.
    "?+++00?": """
        GET api:base-model-detail api:base-model-modules api:base-model-presets
        GET api:target-module-config-index api:dataset-detail api:dataset-versions api:dataset-preview
        GET api:training-run-detail api:training-run-metrics api:training-run-metric-series
        GET api:training-run-evaluations api:training-run-samples api:training-run-events
        GET api:training-run-log api:curve-index api:study-detail api:study-export api:adapter-detail
        GET api:adapter-download api:export-detail api:export-download api:push-detail
        GET api:job-detail api:job-events
        GET openai:file-detail openai:file-content openai:job-detail openai:event-index
        GET openai:checkpoint-index openai:model-detail
    """,
    # API: tokens of editors.
    "?-++00?": """
        PATCH api:training-run-detail
        POST api:dataset-import-again api:training-run-cancel api:training-run-resume
        POST api:training-run-score api:study-cancel api:study-seeds
        POST api:study-score api:job-cancel
        POST openai:job-cancel openai:job-pause openai:job-resume
        DELETE api:token-revoke api:export-detail openai:file-detail
    """,
    # API: tokens of managers.
    "?--+00?": """
        POST api:base-model-inspect api:adapter-stage api:membership-change
        PATCH api:job-detail
        DELETE api:membership-remove api:invitation-revoke openai:model-detail
    """,
    # API: unknown address.
    "?00000?": """
        GET api:api-root api:missing openai:api-root openai:missing
    """,
    # API: a token of one project cannot pause workers of several; its own test covers it.
    "?-----?": """
        POST api:worker-pause api:worker-resume
    """,
}
QUERIES = {
    "api:training-run-metrics": "?name=train/loss",
    "api:curve-index": "?name=train/loss&run={run}",
    "api:target-module-config-index": "?base_model={base_model}",
}
# Ids of the OpenAI-compatible API.
OPENAI_IDS = {
    "file": "file-{dataset_version}",
    "job": "ftjob-{run}",
    "model": "ft:example/tiny:support:triage:{adapter}",
}
# The object in a route's address, by the longest matching prefix of the route's name.
OBJECTS = {
    "dataset": "dataset",
    "base-model": "base_model",
    "target-module-config": "target_module_config",
    "training-run": "run",
    "adapter": "adapter",
    "export": "export",
    "push": "push",
    "membership": "membership",
    "invitation": "invitation",
    "token": "token",
    "queue": "job",
    "worker": "worker",
    "evaluation": "run",
    "job": "job",
    "run": "run",
    "study": "study",
    "decision": "study",
    "share-link": "share_link",
    "saved-view": "saved_view",
    "try-out-link": "try_out_link",
    "prompt-set": "prompt_set",
    "webhook": "webhook",
    "share-link-create": "study",
}
