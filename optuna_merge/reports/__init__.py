"""What a study has found, for people: as text, one HTML page, CSV files, and in optuna-dashboard.

All of them read the study once (`_reading`) and say one verdict (`_verdict`).
"""

from optuna_merge.reports._csv import write_csv
from optuna_merge.reports._dashboard import Dashboard, update_dashboard
from optuna_merge.reports._page import write_html
from optuna_merge.reports._replay import format_replay
from optuna_merge.reports._report import make_report, study_report
from optuna_merge.reports._text import format_report

__all__ = [
    "Dashboard",
    "format_replay",
    "format_report",
    "make_report",
    "study_report",
    "update_dashboard",
    "write_csv",
    "write_html",
]
