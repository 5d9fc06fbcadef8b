"""The suites that ship: they validate, every profile plans, and what their captions claim holds."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from flr_bench.cli import app
from flr_bench.data import filtering
from flr_bench.data.imports import import_data, make_source
from flr_bench.registry import PREPARERS
from flr_bench.runner.cell import FitCell, canonical_json
from flr_bench.runner.listing import resolved, resolved_text, summarise
from flr_bench.runner.plan import Plan
from flr_bench.runner.planning import make_plan
from flr_bench.runner.suite import SuiteFile, bundled_suites, load_suite

SWEEPS = ("backbone", "controls", "decoding", "factors", "paper", "regularizers", "rl", "steps")
ALL = [(name, profile) for name, path in bundled_suites().items() for profile in load_suite(path).suite.profiles]
START = int(datetime(2018, 1, 1, tzinfo=UTC).timestamp())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with tiny imports under every name that a suite takes from elsewhere."""
    folder = tmp_path_factory.mktemp("stand-ins")
    names = {name for path in bundled_suites().values() for name in load_suite(path).suite.imports}
    for number, name in enumerate(sorted(names)):
        items = np.random.default_rng(number).integers(0, 30, (40, 12))
        played = [(user, step, item) for (user, step), item in np.ndenumerate(items)]
        rows = [(user, item, START + 1000 * step + user) for user, step, item in played]
        path = folder / f"{name}.csv"
        path.write_text("user,item,title,time\n" + "".join(f"u{u},i{i},Title {i} of {name},{t}\n" for u, i, t in rows))
        columns = {f"{what}_col": what for what in ("user", "item", "title", "time")}
        import_data(make_source("table", path, columns), name, folder / "cache")
    return folder / "cache"


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints that are not here, and the published recipe for data as small as a test's."""
    recipe = filtering.latentr3_amazon18
    monkeypatch.setattr(filtering, "latentr3_amazon18", lambda coded: recipe(coded, min_items=20))
    monkeypatch.setattr(PREPARERS.get("backbone"), "fingerprint", classmethod(lambda *_: "a checkpoint"))


def plan_of(name: str, profile: str, cache: Path) -> Plan:
    return make_plan(load_suite(bundled_suites()[name]), profile, cache)


@pytest.mark.parametrize(("name", "profile"), ALL)
def test_every_profile_can_be_planned(name: str, profile: str, cache: Path, anywhere: None) -> None:
    assert anywhere is None
    plan = plan_of(name, profile, cache)
    for cell in plan.cells:
        assert hashlib.sha256(canonical_json(cell.inputs).encode()).hexdigest().startswith(cell.hash)
    record = plan.record()
    labels = {row["label"] for row in record["rows"]}
    assert all({contrast["of"], contrast["against"]} <= labels for contrast in record["contrasts"])
    assert {key.partition(" (")[0] for row in plan.rows for key, _ in row.cells} == set(plan.file.suite.data)
    assert summarise(bundled_suites()[name], cache).rows[profile] == len(labels) - sum(
        row.condition.origin is not None and not row.cells for row in plan.rows
    )


@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_have_three_sizes_and_more_than_their_smoke_compares(name: str) -> None:
    suite = load_suite(bundled_suites()[name]).suite
    assert set(suite.profiles) == {"cpu", "gpu", "smoke"}
    assert suite.profiles["smoke"].test_examples == 60
    assert suite.contrasts


def test_data_that_are_not_here_do_not_make_a_suite_wrong(tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["suites", "--check", "--cache", str(tmp_path)])
    assert said.exit_code == 0, said.output
    assert said.output.count("@1: ") == len(bundled_suites())
    assert "its data set toys is not imported: flr-bench data fetch amazon-2018-toys-and-games" in said.output
    listed = json.loads(CliRunner().invoke(app, ["suites", "--json", "--cache", str(tmp_path)]).output)
    assert {entry["name"] for entry in listed} == set(bundled_suites())
    assert next(entry for entry in listed if entry["name"] == "factors")["rows"] == dict.fromkeys(
        ("cpu", "gpu", "smoke"), 13
    )


def test_a_wrong_suite_file_is_told_among_right_ones(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(bundled_suites()["smoke"].read_text().replace("popularity", "popularty"))
    said = CliRunner().invoke(app, ["suites", "check", "smoke", str(wrong)])
    assert said.exit_code == 2
    assert "wrong.yaml:14: recommenders[0].name: unknown method 'popularty': did you mean popularity" in said.output
    assert "1 of 2 suite files are wrong" in said.output


@pytest.mark.parametrize("name", ["factors", "controls", "backbone"])
def test_a_resolved_suite_asks_for_the_same_cells(name: str, cache: Path, tmp_path: Path) -> None:
    file = load_suite(bundled_suites()[name])
    path = tmp_path / f"{name}.yaml"
    path.write_text(resolved_text(file))
    assert "include" not in yaml.safe_load(path.read_text())
    again = load_suite(path)
    assert resolved(again) == resolved(file)
    assert {cell.hash for cell in make_plan(again, "cpu", cache).cells} == {
        cell.hash for cell in make_plan(file, "cpu", cache).cells
    }


# ---------------------------------------------------------------- what the suites claim
def updates(fit: FitCell, examples: int) -> int:
    """Optimiser steps of a fit and of the stages before it."""
    batch = fit.params["rl"]["batch_size"] if fit.stage == "rl" else fit.params["batch_size"]
    own = fit.budget.epochs * math.ceil(min(fit.examples.train_examples or examples, examples) / batch)
    return own + sum(updates(other, examples) for other in fit.requires.values() if isinstance(other, FitCell))


@pytest.mark.parametrize("profile", ["cpu", "gpu", "smoke"])
def test_controls_without_reinforcement_have_as_many_updates(profile: str, cache: Path) -> None:
    plan = plan_of("controls", profile, cache)
    fits = {row.label: next(iter(row.cells.values())).fit for row in plan.rows}
    examples = int(plan.manifests["ml-100k"]["statistics"]["parts"]["train"]["examples"])
    wanted = updates(fits["flr · sft+rl · plain"], examples)
    assert wanted > updates(fits["flr · sft · plain"], examples)
    equal = [label for label in fits if "updates of sft+rl" in label]
    assert len(equal) == 3
    for label in equal:
        assert wanted <= updates(fits[label], examples) <= (1.1 if profile == "gpu" else 1.01) * wanted
        assert fits[label].budget.patience is None


def params(plan: Plan, label: str) -> dict[str, Any]:
    row = next(row for row in plan.rows if row.label == label)
    return dict(next(iter(row.cells.values())).fit.params)


def test_one_thing_at_a_time(cache: Path) -> None:
    plan = plan_of("regularizers", "cpu", cache)
    base = params(plan, "flr · sft · plain")
    for weight in ("orthogonality", "diversity", "sparsity", "balance"):
        assert params(plan, f"{weight} 0") == {**base, weight: 0}
        reinforced = params(plan, f"{weight} 0 in rl")
        assert reinforced == {**params(plan, "flr · sft+rl · plain"), "rl": {**reinforced["rl"], weight: 0}}
    by_label = {row.label: next(iter(row.cells.values())).fit for row in plan.rows}
    assert by_label["sparsity 0.01"].hash == by_label["flr · sft · plain"].hash
    assert len({fit.required_hashes["model"] for label, fit in by_label.items() if label.endswith("in rl")}) == 1


def test_decodings_are_of_one_model_per_reasoner(cache: Path) -> None:
    plan = plan_of("decoding", "cpu", cache)
    fits = {(row.method, seed): cell.fit.hash for row in plan.rows for (_, seed), cell in row.cells.items()}
    assert len({cell.fit.hash for row in plan.rows for cell in row.cells.values()}) == len(fits) == 9
    main = {cell.hash for cell in plan_of("main", "cpu", cache).cells}
    assert set(fits.values()) <= main
    beams = {
        cell.params["beams"] for row in plan.rows for cell in row.cells.values() if cell.params["search"] == "beam"
    }
    assert min(beams) >= max(plan.file.suite.k)  # fewer are not used


def test_the_paper_suite_has_the_published_numbers() -> None:
    file: SuiteFile = load_suite(bundled_suites()["paper"])
    suite, gpu = file.suite, file.suite.profiles["gpu"]
    assert suite.data == ("toys", "cds", "games", "instruments") == tuple(suite.imports)
    assert (suite.filters.recipe, suite.split.cut, suite.max_history) == ("latentr3_amazon18", "examples", 10)
    assert suite.shared["llm"] == {"prompt": "alpaca@1", "batch_size": 128, "learning_rate": 3e-4}
    assert (gpu.budgets["sft"].epochs, gpu.budgets["sft"].patience, gpu.budgets["rl"].epochs) == (3, 1, 1)
    assert gpu.shared["llm"]["backbone"] == {"source": "hub", "path": "Qwen/Qwen2.5-1.5B"}
    single = next(entry for entry in suite.recommenders if entry.name == "single_latent")
    assert single.params["rl"] == {
        "noise_absolute": 1.5,
        "advantage_scope": "micro_batch",
        "weights_dtype": "bfloat16",
    }
    assert [entry.params["factors"] for entry in suite.recommenders if entry.name == "flr"] == [3, 4]
    llms = [entry for entry in suite.recommenders if entry.name != "sasrec"]
    assert all(entry.decodings == ("length_normalised_published", "d3") and entry.rank["beams"] == 10 for entry in llms)
