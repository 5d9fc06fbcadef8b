"""main's profile for a pretrained backbone on one GPU, on a CPU at a tiny size, in pieces and in one go."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from flr_bench.errors import DamagedFileError
from flr_bench.lm.backbone import Backbone, BackboneParams, save_backbone, scratch_model, train_tokenizer
from flr_bench.runner.comparison import compare_cells
from flr_bench.runner.planning import make_plan
from flr_bench.runner.suite import bundled_suites, load_suite
from tests.kills import Course, events

PROFILE = "gpu-pretrained"
SUITE = """\
version: tiny@1
include: main
seeds: 1
recommenders:
  - {{name: popularity}}
  - {{name: plain_llm, stages: [sft], decodings: [plain, d3]}}
  - {{name: flr, stages: [sft, rl], decodings: [length_normalised, plain]}}
contrasts:
  - {{of: flr · sft+rl · plain, against: plain_llm · sft · plain}}
profiles:
  gpu-pretrained:
    device: cpu
    threads: 1
    test_examples: 12
    valid_examples: 8
    budgets:
      fit: {{epochs: 1, train_examples: 500}}
      sft: {{epochs: 2, train_examples: 64}}
      rl: {{train_examples: 32}}
    shared:
      llm:
        backbone: {{source: folder, path: "{backbone}"}}
        micro_batch_tokens: 2048
"""
TITLES = ["Star Wars (1977)", "Toy Story (1995)", "Return of the Jedi (1983)", "Godfather, The (1972)", "Fargo (1996)"]


def write_suite(folder: Path) -> Path:
    """A suite of one's own on a backbone that was 'pretrained' elsewhere."""
    tokenizer = train_tokenizer(TITLES, 400)
    model = scratch_model(BackboneParams(architecture="llama", width=16, layers=1, heads=2), len(tokenizer))
    backbone = folder / "backbone"
    backbone.mkdir()
    save_backbone(Backbone(model, tokenizer), backbone)
    path = folder / "tiny.yaml"
    path.write_text(SUITE.format(backbone=backbone))
    return path


def test_a_suite_of_ones_own_takes_the_profile_and_changes_what_it_must(tmp_path: Path) -> None:
    shipped = load_suite(bundled_suites()["main"]).suite.profiles[PROFILE]
    own = load_suite(write_suite(tmp_path)).suite.profiles[PROFILE]
    assert (shipped.device, own.device) == ("cuda", "cpu")
    same = ("prompt", "precision", "learning_rate")
    assert [own.shared["llm"][name] for name in same] == [shipped.shared["llm"][name] for name in same]
    assert {name: budget.watch for name, budget in own.budgets.items()} == {
        name: budget.watch for name, budget in shipped.budgets.items()
    }


def test_what_is_to_be_done_about_the_missing_checkpoint_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DamagedFileError) as caught:
        make_plan(load_suite(bundled_suites()["main"]), PROFILE, tmp_path / "cache")
    assert str(caught.value).endswith(
        "does not exist; get it with 'flr-bench backbone fetch smollm2-135m --cache cache'"
    )


@pytest.mark.slow
def test_pieces_come_to_the_bits_of_one_run(tmp_path: Path) -> None:
    suite = str(write_suite(tmp_path))
    options = ("--profile", PROFILE, "--no-track")
    plain = Course(suite, tmp_path, options)
    begun = time.monotonic()
    assert plain.start("whole", tmp_path / "whole.jsonl").wait(timeout=1800) == 0
    seconds = max(round((time.monotonic() - begun) / 3), 4)

    codes, done = list[int](), set[str]()
    while not codes or codes[-1] != 0:
        output = tmp_path / f"piece-{len(codes)}.jsonl"
        course = Course(suite, tmp_path, (*options, "--stop-after", f"{seconds}s"))
        codes.append(course.start("pieces", output).wait(timeout=1800))
        assert not {event["cell"] for event in events(output) if event["event"] == "started"} & done
        assert done <= course.cells("pieces")
        done = course.cells("pieces")
        if codes[-1] == 1:  # the machine has become slower
            assert "give it more time" in output.with_suffix(".err").read_text()
            seconds += 2
        elif codes[-1] == 75:
            last = json.loads(output.read_text().splitlines()[-1])
            assert last["event"] == "stopped"
            assert last["cells"] - len(last["missing"]) == len(done)
    assert 75 in codes
    assert set(codes) <= {0, 1, 75}

    assert done == plain.cells("whole")
    for cell in sorted(done):
        found = compare_cells(*(tmp_path / name / "runs" / "cells" / cell for name in ("whole", "pieces")))
        assert found.identical, [cell, *found.unmeasured, *found.differences]
    tables = plain.tables("whole")
    assert any(path.startswith(f"tiny/{PROFILE}/") for path in tables)
    assert plain.tables("pieces") == tables
