"""What stands in a study: names of attributes, lineage, the history of its trials."""

from optuna_merge.trials._attributes import (
    ATTRIBUTES,
    BASELINE as BASELINE,
    BEGUN as BEGUN,
    CONSTRAINT as CONSTRAINT,
    COSTS as COSTS,
    DEFINITION as DEFINITION,
    FAILURE as FAILURE,
    FINGERPRINT as FINGERPRINT,
    GIVEN_UP as GIVEN_UP,
    GREATER_IS_BETTER as GREATER_IS_BETTER,
    HANDED_BACK as HANDED_BACK,
    PREVIEW as PREVIEW,
    PREVIEW_AT_ANCHOR as PREVIEW_AT_ANCHOR,
    PREVIEW_RUN as PREVIEW_RUN,
    PREVIEW_SE as PREVIEW_SE,
    PREVIEW_SECONDS as PREVIEW_SECONDS,
    PREVIEW_TAKEN_FROM as PREVIEW_TAKEN_FROM,
    PROMOTED_FROM as PROMOTED_FROM,
    PROMOTION as PROMOTION,
    QUEUED as QUEUED,
    REFERENCE_POINT as REFERENCE_POINT,
    REPEAT as REPEAT,
    RUN as RUN,
    SHARED_FILE as SHARED_FILE,
    TASKS as TASKS,
    TRIES as TRIES,
    TRUTH as TRUTH,
    TRUTH_REUSED as TRUTH_REUSED,
    TRUTH_SECONDS as TRUTH_SECONDS,
    UNIFORM as UNIFORM,
    UNIT as UNIT,
    UNIT_NAME as UNIT_NAME,
    WEIGHT as WEIGHT,
    WITHDRAWN as WITHDRAWN,
    Attribute,
    names_of_previews as names_of_previews,
    names_of_tasks as names_of_tasks,
    names_of_trials as names_of_trials,
    of_task,
)
from optuna_merge.trials._history import History, Series, TrialReader
from optuna_merge.trials._lineage import lineage, retry_history
from optuna_merge.trials._optuna import (
    ArtifactStore as ArtifactStore,
    ReadMarkingStorage as ReadMarkingStorage,
    RequeuingStorage as RequeuingStorage,
    TrialHandle as TrialHandle,
    cached_trials as cached_trials,
    can_be_copied as can_be_copied,
    claim_waiting as claim_waiting,
    companion_study as companion_study,
    fail_and_requeue,
    fail_stale_trials as fail_stale_trials,
    is_running as is_running,
    known_params as known_params,
    latest_view as latest_view,
    only_reading as only_reading,
    optimize_claimed as optimize_claimed,
    reported_steps as reported_steps,
    set_trial_user_attr as set_trial_user_attr,
    set_user_attrs as set_user_attrs,
)
from optuna_merge.trials._outcome import (
    SCORE,
    Outcome,
    Repeats,
    baseline_name as baseline_name,
    baseline_of as baseline_of,
    seed_name as seed_name,
)
from optuna_merge.trials._outcomes import Counts, Findings, read_study
from optuna_merge.trials._record import Record, read_trial as read_trial
from optuna_merge.trials._spending import Spending, spending, study_costs, study_spending
from optuna_merge.trials._study import (
    finetune_steps,
    has_preview_runs,
    reference_point,
    stored_definition,
    task_directions,
    task_names,
)
from optuna_merge.trials._task_names import check_task_names as check_task_names
from optuna_merge.trials._tries import (
    MAX_RETRY as MAX_RETRY,
    Ended as Ended,
    end_attempt as end_attempt,
)
from optuna_merge.trials._weights import (
    MIN_WEIGHT as MIN_WEIGHT,
    alone_weights,
    canonical_weights,
    check_tasks,
    param_name,
    refused_params,
    suggest_weights,
    trial_weights,
    uniform_weights,
    weight_params,
    weight_tasks,
)

__all__ = [
    "ATTRIBUTES", "SCORE", "Attribute", "Counts", "Findings", "History", "Outcome", "Record",
    "Repeats", "Series", "Spending", "TrialReader", "alone_weights", "canonical_weights",
    "check_tasks", "fail_and_requeue", "finetune_steps", "has_preview_runs", "lineage", "of_task",
    "param_name", "read_study", "reference_point", "refused_params", "retry_history", "spending",
    "stored_definition", "study_costs", "study_spending", "suggest_weights", "task_directions",
    "task_names", "trial_weights", "uniform_weights", "weight_params", "weight_tasks",
]  # fmt: skip
