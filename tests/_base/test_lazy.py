from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import toy_definition, toy_tasks

import optuna_merge as om
from optuna_merge.goals import hypervolume
from optuna_merge.models import from_timm


def test_what_an_extra_brings_is_named_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = toy_definition(score="pareto")
    fitted = om.fit(definition, tmp_path, progress=False)
    for package in ("timm", "botorch"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"needs timm: pip install 'optuna-merge\[images\]'"):
        from_timm("resnet18", toy_tasks())
    with pytest.raises(ImportError, match=r"front needs botorch: .*'optuna-merge\[pareto\]'"):
        om.open_search(fitted, "front")
    with pytest.raises(ImportError, match="a hypervolume needs botorch"):
        hypervolume(np.ones((1, 2)), np.zeros(2))
