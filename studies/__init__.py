"""Complete runs of optuna_merge on real data: each folder is a study, started by its optimize.py.

The scripts put the folder above this one on `sys.path`, so `from studies.fetch import fetch` means
the same in a script, in a test and in a worker process.
"""
