from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from flr_bench.data.prepared import PreparedData, SplitParams, prepare


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def ml_100k(cache: Path) -> PreparedData:
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("ml-100k comes with recbole")
    return prepare("ml-100k", cache)


@pytest.fixture(scope="session")
def left_one_out(cache: Path, ml_100k: PreparedData) -> PreparedData:
    del ml_100k
    return prepare("ml-100k", cache, split=SplitParams(name="leave_one_out"))
