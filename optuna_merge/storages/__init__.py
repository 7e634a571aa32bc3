"""Where a study is kept: Optuna's storages, set up so that several processes can share them."""

from optuna_merge.storages._create_storage import create_storage, masked as masked
from optuna_merge.storages._read_storage import read_storage

__all__ = ["create_storage", "read_storage"]
