"""Results change only with a method's revision: tiny fits are compared with recorded ones.

After a change that is meant to alter results, bump the method's ``revision`` and record anew::

    python tests/test_golden.py METHOD...
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from flr_bench.registry import RECOMMENDERS
from flr_bench.testing import fit_small, small_data
from flr_bench.testing.harness import shared_harness

FILE = Path(__file__).parent / "golden.json"
GOLDEN = json.loads(FILE.read_text()) if FILE.exists() else {}
PLACES = 3  # decimals: processors and torch versions differ in the last bits


def measure(method):
    examples = small_data().test_selection(4, max_history=10)
    ranking = shared_harness().rank(fit_small(method), examples, 5)
    revision = RECOMMENDERS.get(method).revision
    return {"revision": revision, "scores": np.round(ranking.scores.astype(float), PLACES).tolist()}


@pytest.mark.parametrize("method", sorted(GOLDEN))
def test_results_are_those_of_the_revision(method):
    recorded, now = GOLDEN[method], measure(method)
    assert now["revision"] == recorded["revision"], f"{method}: record the new revision (see this file's head)"
    assert np.allclose(now["scores"], recorded["scores"], rtol=0, atol=5 * 10.0**-PLACES), (
        f"{method}: results changed; if that is meant, bump its revision and record anew (see this file's head)"
    )


if __name__ == "__main__":
    GOLDEN.update({method: measure(method) for method in sys.argv[1:]})
    FILE.write_text(json.dumps(dict(sorted(GOLDEN.items())), indent=1) + "\n")
