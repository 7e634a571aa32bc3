"""The report for people: one HTML file that needs nothing else, and its tables as CSV files."""

from optuna_merge.html_report._tables import write_csv
from optuna_merge.html_report._write import write_html

__all__ = ["write_csv", "write_html"]
