"""Workers: running trials that may be killed, roles, shared task runs, garbage."""

from optuna_merge.workers._garbage import Collector, Garbage, check_keep_best
from optuna_merge.workers._roles import Role, check_role, is_finetune_work, is_promoted
from optuna_merge.workers._running import run_trials, runs_folder
from optuna_merge.workers._sharing import StudySharing

__all__ = [
    "Collector", "Garbage", "Role", "StudySharing", "check_keep_best", "check_role",
    "is_finetune_work", "is_promoted", "run_trials", "runs_folder",
]  # fmt: skip
