"""Pictures of what factors do, read back from what is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flr_bench.errors import DamagedFileError
from flr_bench.interface import Catalog
from flr_bench.report.figures import FIGURES
from flr_bench.report.figures.genres import agreement_of, genre_shares
from flr_bench.report.figures.style import figure_style
from flr_bench.report.thoughts import catalog_of, thinkers
from tests.report.figure_stores import DATA, HISTORIES, USERS, prepare_catalog, thought_store, view_of
from tests.report.synthetic_store import MAIN_ROWS, SyntheticSuite, drop_rank, write_store

ALL = ("attention", "gates", "genres", "cosines")


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with figure_style():
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store beside a cache with the titles."""
    folder = tmp_path_factory.mktemp("thoughts")
    prepare_catalog(folder / "cache")
    return thought_store(folder / "runs")


def draw(store: Path, name: str) -> Any:
    figure = FIGURES[name].draw(view_of(store, "thoughts"), DATA)
    assert figure is not None, name
    return figure


def numbers(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_attention_shows_the_first_longest_history_by_title(store: Path) -> None:
    figure = draw(store, "attention")
    assert [axes.get_title() for axes in figure.axes] == ["step 1", "step 2"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label[:6] for label in labels[:-1]] == [f"Film {item}" for item in HISTORIES[2]]
    assert all(len(label) <= 34 for label in labels), "shortened"
    assert labels[-1] == "(the prompt's other words)"
    # Factor 1 looks at the oldest item with 0.7, factor 2 at all four alike; the rest are the prompt's words.
    assert numbers(figure.axes[1]) == ["70", "15", "0", "15", "0", "15", "0", "15", "30", "40"]
    says = FIGURES["attention"].says(view_of(store, "thoughts"), DATA)
    assert "flr · sft+rl · plain (seed 0) over the 4 items in the history of user 2" in says
    assert "factor 1: Film 5 with a title that is a… (70 %)" in says


def test_without_titles_items_have_numbers_and_that_is_said(tmp_path: Path) -> None:
    store = thought_store(tmp_path / "runs")
    figure = draw(store, "attention")
    assert figure.axes[0].get_yticklabels()[0].get_text() == "item 5"
    view = view_of(store, "thoughts")
    assert "Titles are not at hand" in " ".join(figure.get_suptitle().split())
    assert "Titles are not at hand" in FIGURES["attention"].says(view, DATA)
    assert FIGURES["genres"].draw(view, DATA) is None
    prepare_catalog(tmp_path / "cache", checksum="other")
    assert catalog_of(view, DATA) is None, "titles of other data are none"


def test_gates_are_boxes_over_users(store: Path) -> None:
    figure = draw(store, "gates")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "flr, before training",
        "flr, after sft",
        "flr, after sft+rl",
    ]
    own = np.linspace(0.1, 0.6, USERS)
    axes = figure.axes[0]
    medians = [line.get_ydata()[0] for line in axes.lines if line.get_linewidth() == 2.0]
    assert medians == pytest.approx([np.median(own), 1 - np.median(own)])
    assert any(line.get_ydata()[0] == pytest.approx(0.5) and line.get_linestyle() == "--" for line in axes.lines)
    says = FIGURES["gates"].says(view_of(store, "thoughts"), DATA)
    assert "flr · untuned · plain: 0.35 (2), 0.65 (4) of 6 users" in says


def test_cosines_stand_beside_those_from_before_training(store: Path) -> None:
    figure = draw(store, "cosines")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "flr, before training",
        "flr, after sft",
        "flr, after sft+rl",
    ]
    assert [[text for text in numbers(axes) if text] for axes in figure.axes] == [["+0.80"], ["+0.10"], ["+0.10"]]
    assert "before training 0.80; flr, after sft 0.10" in FIGURES["cosines"].says(view_of(store, "thoughts"), DATA)


def test_that_there_is_no_matrix_from_before_training_is_said(tmp_path: Path) -> None:
    store = thought_store(tmp_path / "runs", untuned=False)
    figure = draw(store, "cosines")
    assert len(figure.axes) == 1
    said = "The suite keeps no thoughts of an untrained model"
    assert said in " ".join(figure.get_suptitle().split())
    assert said in FIGURES["cosines"].says(view_of(store, "thoughts"), DATA)


def test_genres_beside_shuffled_ones(store: Path) -> None:
    figure = draw(store, "genres")
    left, right = figure.axes
    assert {label.get_text() for label in left.get_yticklabels()} == {"Comedy", "War", "none"}
    assert sum(patch.get_height() for patch in right.patches) == 500
    assert "bits, with genres shuffled among items" in FIGURES["genres"].says(view_of(store, "thoughts"), DATA)


def test_agreement_by_hand() -> None:
    catalog = Catalog(tuple("abcd"), tuple("ABCD"), {"genres": ("X", "X|Y", "Y", "")})
    shares, names = genre_shares(catalog, np.array([0, 1, 2]))
    assert names == ("X", "Y")
    assert shares.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    # Each factor has a genre of its own, half of the attention each: one bit.
    apart = agreement_of(np.array([[1.0, 0.0], [0.0, 1.0]]), np.eye(2), ("X", "Y"))
    assert apart.bits == pytest.approx(1)
    assert apart.lift.tolist() == [[2, 0], [0, 2]]
    assert apart.p == 1, "with two items every shuffle tells factors apart"
    alike = agreement_of(np.ones((2, 4)), np.repeat(np.eye(2), 2, axis=0), ("X", "Y"))
    assert alike.bits == pytest.approx(0, abs=1e-12)


def test_agreement_that_is_there_is_found_and_none_is_not() -> None:
    rng = np.random.default_rng(5)
    shares = np.eye(3)[rng.integers(0, 3, 90)]
    liked = 0.2 + shares[:, :2].T + rng.random((2, 90)) / 10
    assert agreement_of(liked, shares, ("X", "Y", "Z")).p < 0.01
    p = [agreement_of(rng.random((2, 90)), shares, ("X", "Y", "Z")).p for _ in range(20)]
    assert 0.25 < np.mean(p) < 0.75


def test_one_seed_that_is_there_is_shown_while_another_is_missing(tmp_path: Path) -> None:
    store = thought_store(tmp_path / "runs", seeds=(0, 1))
    drop_rank(store, "thoughts", "flr · sft+rl · plain", 0)
    assert [(one.row.label, one.seed) for one in thinkers(view_of(store, "thoughts"), DATA)] == [
        ("flr · untuned · plain", "0"),
        ("flr · sft · plain", "0"),
        ("flr · sft+rl · plain", "1"),
    ]


def test_suites_that_keep_no_thoughts_have_none_of_these(tmp_path: Path) -> None:
    view = view_of(write_store(tmp_path / "runs", SyntheticSuite(rows=MAIN_ROWS[13:14], contrasts=())), "main")
    assert [name for name in ALL if FIGURES[name].draw(view, DATA) is not None] == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = thought_store(tmp_path / "runs")
    for path in (store / "cells").glob("*/thoughts.parquet"):
        path.write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match=r"thoughts\.parquet cannot be read"):
        FIGURES["gates"].draw(view_of(store, "thoughts"), DATA)
