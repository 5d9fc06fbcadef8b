from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flr_bench.runner.pretty import pretty

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES, st.integers(1, 3), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_text_is_that_of_the_standard_library(value: Any, indent: int, sort_keys: bool) -> None:
    expected = json.dumps(value, indent=indent, ensure_ascii=False, sort_keys=sort_keys)
    assert pretty(value, indent, sort_keys=sort_keys) == expected


def test_what_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="Out of range"):
        pretty({"a": [{"b": float("nan")}]}, 2, allow_nan=False)
    with pytest.raises(TypeError):
        pretty({"a": [{1, 2}]}, 2)
