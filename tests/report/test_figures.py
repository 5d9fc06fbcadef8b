"""Figures read back from what is drawn: places, labels, numbers of marks."""

from __future__ import annotations

import io
import itertools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from flr_bench.report.comparisons import compare, per_example, quality
from flr_bench.report.cost import total_seconds
from flr_bench.report.figures import FIGURES
from flr_bench.report.figures.cost import pareto_front, spaced, uncrossed
from flr_bench.report.figures.differences import is_shown
from flr_bench.report.figures.style import figure_style, looks, looks_by_group
from flr_bench.report.reading import SuiteView
from flr_bench.report.training import fits
from tests.report.figure_stores import (
    DATA,
    WIDTHS,
    condition_store,
    edit_rows,
    prepare_catalog,
    search_store,
    sweep_store,
    thought_store,
    view_of,
)
from tests.report.synthetic_store import ABLATION_ROWS, MAIN_ROWS, RowSpec, SyntheticSuite, drop_rank, write_store

Point = tuple[float, float]

LONG = "a_method_with_a_name_that_nobody_would_give_it · sft · length_normalised"
SLACK = 4
"""Pixels: words are laid out at the resolution of SVG and measured at that of the screen."""
MAIN = SyntheticSuite(
    rows=(*MAIN_ROWS[:3], *MAIN_ROWS[16:19], RowSpec(LONG, "other", "llm", 0.4, ("sft",), "length_normalised")),
    contrasts=(
        ("flr · sft+rl · d3", "sasrec"),
        (LONG, "popularity"),
        ("flr · sft+rl · d3", "popularity"),
        ("flr · sft+rl · d3", "flr · sft+rl · plain"),
    ),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("figures") / "runs"
    write_store(root, MAIN)
    return write_store(root, SyntheticSuite(name="ablations", rows=ABLATION_ROWS, contrasts=()))


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with figure_style():
        yield


def draw(view: SuiteView, name: str) -> Any:
    figure = FIGURES[name].draw(view, DATA)
    assert figure is not None, name
    return figure


def tick_labels(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def marks(axes: Any) -> list[tuple[float, float, str]]:
    """``(x, y, fill)`` of the point of every error bar."""
    return [
        (float(x), float(y), str(bar.lines[0].get_markerfacecolor()))
        for bar in axes.containers
        if hasattr(bar, "has_xerr")
        for x, y in zip(*bar.lines[0].get_data(), strict=True)
    ]


def words(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def headline_of(figure: Any) -> str:
    return " ".join(figure.get_suptitle().split())


def legend_of(figure: Any) -> list[str]:
    parts = [figure, *figure.subfigs]
    return [text.get_text() for part in parts for legend in part.legends for text in legend.get_texts()]


# ---------------------------------------------------------------- quality
def test_quality_marks_stand_at_the_means_on_the_line_of_their_model(store: Path) -> None:
    view = view_of(store, "main")
    axes = draw(view, "quality").axes[0]
    assert tick_labels(axes) == [
        "popularity",
        "item_transition",
        "sasrec",
        "flr · sft+rl",
        LONG.removesuffix(" · length_normalised"),
    ]
    drawn = {round(x, 9): y for x, y, _ in marks(axes)}
    assert len(drawn) == len(MAIN.rows)
    for row in view.rows:
        found = quality(view, row, DATA, view.primary)
        assert found is not None
        line = tick_labels(axes).index(row.label.removesuffix(f" · {row.decoding}"))
        assert drawn[round(found.mean, 9)] == pytest.approx(line, abs=0.3)
    assert "sasrec" not in FIGURES["quality"].says(view, DATA).partition("highest")[0]


# ---------------------------------------------------------------- differences
def test_contrasts_are_those_declared_each_below_what_it_is_of(store: Path) -> None:
    view = view_of(store, "main")
    axes = draw(view, "contrasts").axes[0]
    rivals = ["sasrec", "popularity", "flr · sft+rl · plain"]
    assert tick_labels(axes) == ["flr · sft+rl · d3 minus", *rivals, f"{LONG} minus", "popularity"]
    pairs = [MAIN.contrasts[i] for i in (0, 2, 3, 1)]
    compared = compare(view, pairs, DATA, view.primary)
    assert [is_shown(c) for c in compared] != [is_shown(compared[0])] * 4, "the store has both kinds"
    for (x, y, face), comparison, line in zip(marks(axes), compared, (1, 2, 3, 5), strict=True):
        assert comparison.difference is not None
        assert (x, y) == (pytest.approx(comparison.difference.mean), line)
        assert (face != "white") == is_shown(comparison)
    assert words(axes) == [f"{c.difference.mean:+.4f}".replace("-", "\N{MINUS SIGN}") for c in compared if c.difference]
    says = FIGURES["contrasts"].says(view, DATA)
    shown = [c for c in compared if is_shown(c)]
    assert f"shown after Holm's correction for {len(shown)}: " in says
    assert f"no difference could be shown for {4 - len(shown)} of 4" in says


def test_a_suite_without_contrasts_has_no_figure_of_them(store: Path) -> None:
    assert FIGURES["contrasts"].draw(view_of(store, "ablations"), DATA) is None


def test_ablation_bars_reach_the_difference_to_the_whole(store: Path) -> None:
    view = view_of(store, "ablations")
    axes = draw(view, "ablations").axes[0]
    assert tick_labels(axes) == [spec.label for spec in ABLATION_ROWS[1:]]
    pairs = [(spec.label, "full") for spec in ABLATION_ROWS[1:]]
    means = [c.difference.mean for c in compare(view, pairs, DATA, view.primary) if c.difference]
    assert [patch.get_width() for patch in axes.patches] == pytest.approx(means)
    assert axes.get_xlabel() == "NDCG@10 minus that of 'full', 95 % interval"
    assert FIGURES["ablations"].draw(view_of(store, "main"), DATA) is None


# ---------------------------------------------------------------- sweeps
def test_quality_against_k_has_a_line_per_way_and_a_level_for_the_row_beside(tmp_path: Path) -> None:
    view = view_of(sweep_store(tmp_path), "sweep")
    axes = draw(view, "factors").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "4"]
    assert axes.get_xlabel() == "number of factors K"
    lines = [bar.lines[0] for bar in axes.containers]
    for line, label in zip(lines, ("K = {}", "K = {}, width 24"), strict=False):
        assert line.get_xdata() == pytest.approx([1, 2, 4], abs=0.2)
        rows = [view.row(label.format(k)) for k in (1, 2, 4)]
        assert line.get_ydata() == pytest.approx(
            [d.mean for r in rows if r and (d := quality(view, r, DATA, "ndcg@10"))]
        )
    beside = view.row("single_latent · sft · plain")
    assert beside is not None
    found = quality(view, beside, DATA, "ndcg@10")
    assert found is not None
    assert lines[2].get_ydata() == pytest.approx([found.mean])
    assert lines[2].get_xdata()[0] > 4
    assert legend_of(axes.figure) == ["K = …", "K = …, width 24", "single_latent · sft · plain"]
    assert FIGURES["steps"].draw(view, DATA) is None
    other = draw(view, "sweeps")
    assert [panel.get_xlabel() for panel in other.axes] == ["rl.noise_scale"]


def test_a_missing_point_breaks_its_line_and_is_named(tmp_path: Path) -> None:
    store = sweep_store(tmp_path)
    drop_rank(store, "sweep", "K = 2, width 24", 1)
    view = view_of(store, "sweep")
    figure = draw(view, "factors")
    line = figure.axes[0].containers[1].lines[0]
    assert [math.isnan(y) for y in line.get_ydata()] == [False, True, False]
    for text in (headline_of(figure), FIGURES["factors"].says(view, DATA)):
        assert "rankings are missing (found/planned): K = 2, width 24 (1/2)." in text


# ---------------------------------------------------------------- robustness
def test_robustness_curves_start_at_all_and_go_level_by_level(tmp_path: Path) -> None:
    view = view_of(condition_store(tmp_path), "fragile")
    figure = draw(view, "robustness")
    drop, replace, shuffle = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "items of the history dropped, %",
        "items replaced by random ones, %",
        "order of the history",
    ]
    assert legend_of(figure) == ["sasrec", "gru4rec"]
    for bar, method in zip(drop.containers, ("sasrec", "gru4rec"), strict=True):
        own, *changed = (
            view.row(f"{method}{rest}") for rest in ("", " · 20 % of history drop", " · 50 % of history drop")
        )
        means = [
            found[0].mean() for row in (own, *changed) if row and (found := per_example(view, row, DATA, "ndcg@10"))
        ]
        x, y = bar.lines[0].get_data()
        assert x == pytest.approx([0, 20, 50], abs=2)
        assert y == pytest.approx([100 * mean / means[0] for mean in means])
    assert len(replace.containers[0].lines[0].get_xdata()) == 2
    assert shuffle.containers[0].lines[0].get_linestyle() == "None", "one level is no curve"


def test_a_missing_level_is_named(tmp_path: Path) -> None:
    store = condition_store(tmp_path)
    drop_rank(store, "fragile", "sasrec · 20 % of history drop", 0)
    view = view_of(store, "fragile")
    figure = draw(view, "robustness")
    assert [math.isnan(y) for y in figure.axes[0].containers[0].lines[0].get_ydata()] == [False, True, False]
    assert "sasrec · 20 % of history drop (1/2)" in headline_of(figure)
    assert "sasrec · 20 % of history drop (1/2)" in FIGURES["robustness"].says(view, DATA)


# ---------------------------------------------------------------- beams
def test_a_method_whose_own_ranking_is_missing_is_not_drawn_at_all(tmp_path: Path) -> None:
    store = condition_store(tmp_path)
    drop_rank(store, "fragile", "sasrec", 0)
    figure = draw(view_of(store, "fragile"), "robustness")
    values = figure.axes[0].containers[0].lines[0].get_ydata()
    assert all(math.isnan(value) for value in values)
    assert "sasrec (1/2)" in headline_of(figure)


def test_beam_error_falls_with_the_beams_in_a_row_per_decoding(tmp_path: Path) -> None:
    view = view_of(search_store(tmp_path, missed=2), "decoding")
    figure = draw(view, "beams")
    assert len(figure.axes) == 4
    assert [axes.get_title(loc="left").partition(":")[0] for axes in figure.axes] == ["plain", "plain", "d3", "d3"]
    for left, right in (figure.axes[:2], figure.axes[2:]):
        assert left.containers[0].lines[0].get_ydata() == pytest.approx([20, 0]), "2 of 10 items, then none"
        assert len(right.containers[0].lines[0].get_ydata()) == len(WIDTHS)
    assert "20.00 % with 5 beams" in FIGURES["beams"].says(view, DATA)


def test_searches_without_their_exact_ranking_are_named(tmp_path: Path) -> None:
    store = search_store(tmp_path)
    drop_rank(store, "decoding", "flr, exact · sft · d3", 1)
    view = view_of(store, "decoding")
    figure = draw(view, "beams")
    assert len(figure.axes) == 2
    assert "flr · sft · d3 (5/6)" in headline_of(figure)
    assert "flr · sft · d3 (5/6)" in FIGURES["beams"].says(view, DATA)


# ---------------------------------------------------------------- strata
def test_strata_have_a_mark_per_row_and_stratum(store: Path) -> None:
    view = view_of(store, "main")
    figure = draw(view, "strata")
    popularity, length = figure.axes
    assert tick_labels(popularity) == [row.label for row in view.rows]
    row = view.rows[0]
    found = per_example(view, row, DATA, "ndcg@10")
    assert found is not None
    values, ranks = found
    for axes, name in ((popularity, "popularity"), (length, "history_length")):
        names = [text.get_text().partition(" (")[0] for text in axes.get_legend().get_texts()]
        points = [line for line in axes.lines if line.get_marker() not in ("None", "")]
        assert len(points) == len(names) * len(view.rows)
        for label, point in zip(names, points, strict=False):
            mean = values[:, ranks.strata[name] == label].mean()
            assert point.get_xdata()[0] == pytest.approx(mean)
            assert point.get_ydata()[0] == pytest.approx(0, abs=0.5)
    assert popularity.get_legend().get_texts()[0].get_text() == "low (20 examples, 4 users)"


# ---------------------------------------------------------------- cost
def test_cost_points_and_the_front_of_those_that_none_beats(store: Path) -> None:
    view = view_of(store, "main")
    axes = draw(view, "cost").axes[0]
    points = []
    for row in view.rows:
        seconds, found = total_seconds(view, row, DATA).mean, quality(view, row, DATA, "ndcg@10")
        assert seconds is not None
        assert found is not None
        points.append((seconds, found.mean, row.label))
    drawn = [line for line in axes.lines if line.get_marker() not in ("None", "")]
    assert sorted(line.get_xdata()[0] for line in drawn) == pytest.approx(sorted(x for x, *_ in points))
    front = pareto_front(points)
    step = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert step.get_xdata() == pytest.approx([x for x, *_ in front])
    assert {text.get_text() for text in axes.texts if text.get_fontweight() == "bold"} == {name for *_, name in front}
    assert len(axes.texts) == len(points)
    assert all(name in FIGURES["cost"].says(view, DATA) for *_, name in front)


def test_the_front_by_hand() -> None:
    points = [(5.0, 0.1, "a"), (1.0, 0.2, "b"), (1.0, 0.3, "c"), (9.0, 0.4, "d"), (10.0, 0.4, "e")]
    assert [name for *_, name in pareto_front(points)] == ["c", "d"]


def test_labels_are_pushed_apart_and_stay_inside() -> None:
    places = spaced([0.9, 0.5, 0.5, 0.49, 0.0], 0.1)
    assert all(above - below >= 0.1 - 1e-12 for above, below in itertools.pairwise(places))
    assert places[0] == pytest.approx(0.9)
    assert places[-1] >= 0.05


@given(
    st.lists(
        st.tuples(st.integers(0, 20).map(lambda x: x / 20), st.integers(0, 20).map(lambda y: y / 20)),
        min_size=1,
        max_size=12,
        unique=True,
    )
)
def test_lines_to_names_do_not_cross(points: list[tuple[float, float]]) -> None:
    heights = [1 - i / 12 for i in range(len(points))]
    places = uncrossed(points, heights)
    assert sorted(places, reverse=True) == heights
    ends = [(point, (1.0, place)) for point, place in zip(points, places, strict=True)]
    assert not any(cross(*one, *other) for one, other in itertools.combinations(ends, 2))


def cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    """Whether the lines from a to b and from c to d meet within both, not only at an end."""
    return side(a, b, c) * side(a, b, d) < -1e-9 and side(c, d, a) * side(c, d, b) < -1e-9


def side(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def test_of_many_rows_those_on_the_front_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flr_bench.report.figures.cost.MOST_NAMES", len(MAIN.rows) - 1)
    figure = draw(view_of(write_store(tmp_path, MAIN), "main"), "cost")
    named = figure.axes[0].texts
    assert 0 < len(named) < len(MAIN.rows)
    assert {text.get_fontweight() for text in named} == {"bold"}
    assert "only those on the line are named" in headline_of(figure)


# ---------------------------------------------------------------- curves
def test_a_model_is_called_by_what_its_rows_share(tmp_path: Path) -> None:
    assert {fit.label.partition(" [")[0] for fit in fits(view_of(search_store(tmp_path), "decoding"), DATA)} == {
        "flr · sft"
    }


def test_curves_show_loss_penalties_and_reward_of_each_stage(tmp_path: Path) -> None:
    store = write_store(tmp_path, SyntheticSuite(rows=MAIN_ROWS[17:18], seeds=(0, 1), contrasts=()))
    for path in (store / "cells").glob("*/metrics.json"):
        metrics = json.loads(path.read_text())
        if "report" in metrics and json.loads((path.parent / "cell.json").read_text())["inputs"].get("stage") == "rl":
            curves = {"penalty_diversity": [[0.5, 0.9], [1.0, 0.7]], "reward": [[0.5, -3.0], [1.0, -1.0]]}
            metrics["report"]["curves"] |= curves
            path.write_text(json.dumps(metrics))
    view = view_of(store, "main")
    figure = draw(view, "curves")
    panels = {axes.get_title(loc="left"): axes for axes in figure.axes if axes.axison}
    assert list(panels) == ["sft: loss, train", "rl: loss, train", "rl: reward, train", "rl: penalty: diversity"]
    assert panels["rl: penalty: diversity"].lines[0].get_ydata() == pytest.approx([0.9, 0.7])
    assert legend_of(figure) == ["flr", "flr"], "each stage has a legend of its own"
    (first,), (second,) = (part.axes[0].lines for part in figure.subfigs)
    assert first.get_color() == second.get_color(), "a method has one colour"
    assert "rl, reward, train (1 model): flr from -3 to -1" in FIGURES["curves"].says(view, DATA)


def test_words_are_as_wide_in_every_format() -> None:
    with figure_style():
        figures = [Figure(dpi=dpi) for dpi in (72, 150)]
        texts = [figure.text(0.1, 0.5, "single_latent · sft+rl (noise-free prompt)") for figure in figures]
        widths = [
            text.get_window_extent(FigureCanvasAgg(figure).get_renderer()).width / figure.dpi
            for text, figure in zip(texts, figures, strict=True)
        ]
    assert widths[0] == pytest.approx(widths[1], rel=0.002)


def test_what_varies_a_method_has_its_colour_and_dashes_of_its_own() -> None:
    found = looks_by_group({"a": "x", "b": "y", "b, changed": "y"}, ["x", "y", "z"])
    assert found["b"]["color"] == found["b, changed"]["color"] != found["a"]["color"]
    assert len({(look["linestyle"], look["marker"]) for look in found.values()}) == 3
    alone = looks_by_group({"b": "y", "b, changed": "y"}, ["x", "y"])
    assert alone == looks(["b", "b, changed"]), "a colour for one group alone would say nothing"
    many = looks_by_group({"a": "x", **{f"b {i}": "y" for i in range(32)}}, ["x", "y"])
    assert len({(look["color"], look["linestyle"], look["marker"]) for look in many.values()}) == 33


def test_missing_fits_are_named(tmp_path: Path) -> None:
    store = write_store(tmp_path, SyntheticSuite(rows=MAIN_ROWS[2:4], contrasts=()))
    view = view_of(store, "main")
    shutil.rmtree(store / "cells" / view.rows[0].cells[DATA]["1"].fits[0])
    view = view_of(store, "main")
    figure = draw(view, "curves")
    assert "fits are missing (found/planned): sasrec (2/3)." in headline_of(figure)
    assert "sasrec (2/3)" in FIGURES["curves"].says(view, DATA)
    assert legend_of(figure) == ["bert4rec"]


# ---------------------------------------------------------------- all
def test_missing_rankings_are_said_in_every_figure_of_rows(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "runs")
    drop_rank(tmp_path / "runs", "main", "sasrec", 1)
    view = view_of(tmp_path / "runs", "main")
    for name, count in (("quality", 1), ("contrasts", 1), ("strata", 2)):
        figure = draw(view, name)
        said = [text for axes in figure.axes for text in words(axes) if text.startswith("missing")]
        assert said == [f"missing ({'5/6' if name == 'contrasts' else '2/3'})"] * count
    assert "sasrec (2/3)" in headline_of(draw(view, "cost"))
    for name in ("quality", "strata", "cost"):
        assert "sasrec (2/3)" in FIGURES[name].says(view, DATA), name
    assert "1 of 4 cannot be computed" in FIGURES["contrasts"].says(view, DATA)


def test_nothing_finished_is_nothing_drawn(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs", MAIN)
    shutil.rmtree(store / "cells")
    view = view_of(store, "main")
    assert {name for name, kind in FIGURES.items() if kind.draw(view, DATA) is not None} == set()


def test_lines_differ_by_more_than_their_colour() -> None:
    found = list(looks([str(i) for i in range(24)]).values())
    assert len({(look["marker"], look["linestyle"]) for look in found[:8]}) == 8
    assert len({(str(look["color"]), look["marker"], look["linestyle"]) for look in found}) == 24


@pytest.fixture(scope="module")
def every(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SuiteView]:
    """A view per figure that draws it."""
    root = tmp_path_factory.mktemp("every")
    sweep = sweep_store(root / "sweep")
    edit_rows(sweep, "sweep", _also_steps)
    prepare_catalog(root / "thoughts" / "cache")
    made = {
        "main": view_of(store, "main"),
        "ablations": view_of(store, "ablations"),
        "sweep": view_of(sweep, "sweep"),
        "fragile": view_of(condition_store(root / "fragile"), "fragile"),
        "decoding": view_of(search_store(root / "decoding"), "decoding"),
        "thoughts": view_of(thought_store(root / "thoughts" / "runs"), "thoughts"),
    }
    suites = {
        "ablations": "ablations",
        "factors": "sweep",
        "steps": "sweep",
        "sweeps": "sweep",
        "robustness": "fragile",
    }
    suites |= {"beams": "decoding", **dict.fromkeys(("attention", "gates", "genres", "cosines"), "thoughts")}
    return {name: made[suites.get(name, "main")] for name in FIGURES}


def _also_steps(row: dict[str, Any]) -> None:
    if "factors" in row.get("point", {}) and "width" not in row["label"]:
        row["point"]["steps"] = row["point"]["factors"]


@pytest.mark.slow
def test_every_figure_is_the_same_when_made_again_and_no_words_lie_outside(every: dict[str, SuiteView]) -> None:
    for name, view in every.items():
        first, second = _svg(draw(view, name)), _svg(draw(view, name))
        assert first == second, name
        assert b"<dc:date>" not in first
        says = FIGURES[name].says(view, DATA)
        assert says.endswith("."), name


def _svg(figure: Any) -> bytes:
    """The figure's SVG, after seeing that all its words stand inside and no tick label over the next."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    renderer = FigureCanvasAgg(figure).get_renderer()
    frame = figure.bbox
    for legend in [legend for part in (figure, *figure.subfigs) for legend in part.legends]:
        box = legend.get_window_extent(renderer)
        assert box.x0 >= frame.x0 - SLACK, "the legend is cut off"
        assert box.x1 <= frame.x1 + SLACK, "the legend is cut off"
    for axes in figure.axes:
        if not axes.axison:
            continue
        for text in (axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts):
            box = text.get_window_extent(renderer)
            assert not text.get_text() or (box.x0 >= frame.x0 - SLACK and box.x1 <= frame.x1 + SLACK), text.get_text()
        labels = [label for label in axes.get_yticklabels() if label.get_text()]
        boxes = sorted((box.y0, box.y1, box.x0) for label in labels for box in [label.get_window_extent(renderer)])
        assert all(left >= frame.x0 - SLACK for *_, left in boxes), "cut off on the left"
        assert all(low >= high - SLACK for (_, high, _), (low, _, _) in itertools.pairwise(boxes)), "overlap"
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})  # last: it moves labels to its own resolution
    return buffer.getvalue()
