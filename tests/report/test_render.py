from __future__ import annotations

import csv
import io

from flr_bench.report.render import Column, Entry, Table, latex_escape, mark_best, number, to_csv, to_latex, to_markdown


def table(*rows: tuple[Entry, ...], ranked: int = 1) -> Table:
    columns = (Column("data", "Data", csv_only=True), Column("m", "Method"), Column("x", "X", "mean", ranked=ranked))
    return Table("key", "Title", "Caption 50 % of_it.", columns, tuple((Entry("d"), *row) for row in rows))


def test_best_and_second_are_marked_as_shown_and_gaps_and_controls_do_not_compete() -> None:
    values = (0.30001, 0.30002, 0.2, 0.1, 0.9)
    rows = [(Entry(f"m{i}"), Entry(value=v, spread=0.01)) for i, v in enumerate(values)]
    rows.append((Entry("gap"), Entry(found=2, planned=3)))
    marked = mark_best(table(*rows), [True, True, True, True, False, True])
    assert [row[2].emphasis for row in marked.rows] == ["best", "best", "second", "", "", ""]
    text = to_markdown(marked)
    assert "**0.3000 ± 0.0100**" in text
    assert "<u>0.2000 ± 0.0100</u>" in text
    assert "\N{EN DASH} (2/3)" in text
    latex = to_latex(marked)
    assert r"\textbf{0.3000 $\pm$ 0.0100}" in latex
    assert r"\underline{0.2000 $\pm$ 0.0100}" in latex
    assert "-- (2/3)" in latex


def test_less_is_better_where_a_column_says_so() -> None:
    rows = [(Entry("a"), Entry(value=0.5)), (Entry("b"), Entry(value=0.25))]
    marked = mark_best(table(*rows, ranked=-1), [True, True])
    assert [row[2].emphasis for row in marked.rows] == ["second", "best"]


def test_latex_takes_every_character_literally() -> None:
    assert latex_escape("a_b & 50% {x} #1 $ ~ ^ \\ < |") == (
        r"a\_b \& 50\% \{x\} \#1 \$ \textasciitilde{} \textasciicircum{} \textbackslash{} \textless{} \textbar{}"
    )
    assert latex_escape("flr · sft → 0.1 ± 0.2") == r"flr $\cdot$ sft $\rightarrow$ 0.1 $\pm$ 0.2"
    latex = to_latex(table((Entry("row_1 & 2%"), Entry(value=-0.1))))
    assert r"row\_1 \& 2\% & $-$0.1000 \\" in latex
    assert r"Caption 50 \% of\_it." in latex
    for line in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert line in latex


def test_csv_reads_back_and_leaves_incomplete_means_empty() -> None:
    rows = [
        (Entry('a, "b"'), Entry(value=1 / 3, spread=0.1, found=3, planned=3)),
        (Entry("gap"), Entry(value=0.7, found=1, planned=3)),
        (Entry("blank"), Entry()),
    ]
    read = list(csv.DictReader(io.StringIO(to_csv([table(*rows)]))))
    assert read[0] == {"data": "d", "m": 'a, "b"', "x": "0.3333333333", "x_sd": "0.1", "x_seeds": "3", "x_planned": "3"}
    assert (read[1]["x"], read[1]["x_seeds"], read[1]["x_planned"]) == ("", "1", "3")
    assert set(read[2].values()) == {"d", "blank", ""}


def test_no_negative_zero() -> None:
    assert number(-0.00001, 4) == "0.0000"
    assert number(-0.00001, 4, signed=True) == "+0.0000"
    assert number(-0.5, 1) == "-0.5"
