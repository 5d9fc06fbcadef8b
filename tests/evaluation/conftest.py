from __future__ import annotations

import importlib.util

import pytest

from flr_bench.data.prepared import PreparedData, prepare


@pytest.fixture(scope="session")
def ml_100k_data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    if importlib.util.find_spec("recbole") is None:
        pytest.skip("ml-100k comes with recbole")
    return prepare("ml-100k", tmp_path_factory.mktemp("cache"))
