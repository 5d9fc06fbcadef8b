"""HTML and LaTeX with siunitx, beside the forms of test_render."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from flr_bench.errors import UnknownNameError
from flr_bench.report.forms import ALL, endings, to_html, to_siunitx
from flr_bench.report.render import Column, Entry, Table

BELOW = Entry(value=-0.25, low=-0.3, high=0.1)
TABLE = Table(
    "main-ml-100k",
    "Title <b>",
    "Caption & more.",
    (
        Column("data", "Data", csv_only=True),
        Column("m", "Method"),
        Column("x", "NDCG@10", "mean", ranked=1),
        Column("d", "Difference", "interval", signed=True),
        Column("p", "p", "number", least=1e-4),
    ),
    (
        (Entry("d"), Entry("a|b <c>"), Entry(value=0.5, spread=0.01, emphasis="best"), Entry(), Entry("\N{EN DASH}")),
        (Entry("d"), Entry("b"), Entry(value=0.25, emphasis="second"), BELOW, Entry(value=0.0)),
        (Entry("d"), Entry("c"), Entry(found=1, planned=3), Entry(value=0.0, low=0.0, high=0.2), Entry(value=0.04)),
    ),
    frozenset({2}),
    ("A note with 1 < 2.",),
)  # fmt: skip


def test_html_is_well_formed_and_names_every_heading() -> None:
    parsed = ET.fromstring(f"<div>{to_html(TABLE)}</div>")  # entities of HTML and XML are alike here
    table = parsed.find("table")
    assert table is not None
    assert table.findtext("caption") == "Title <b>. Caption & more."
    heads = table.findall("thead/tr/th")
    assert [(head.text, head.get("scope")) for head in heads] == [
        (title, "col") for title in ("Method", "NDCG@10", "Difference", "p")
    ]
    bodies = table.findall("tbody")
    assert [len(body.findall("tr")) for body in bodies] == [2, 1]
    rows = [row for body in bodies for row in body.findall("tr")]
    assert [(row.find("th").text, row.find("th").get("scope")) for row in rows] == [  # type: ignore[union-attr]
        ("a|b <c>", "row"), ("b", "row"), ("c", "row"),
    ]  # fmt: skip
    assert rows[0].findtext("td/strong") == "0.5000 ± 0.0100"
    assert rows[1].findtext("td/u") == "0.2500"
    assert [cell.text for cell in rows[1].findall("td")][1:] == ["-0.2500 [-0.3000, +0.1000]", "<0.0001"]
    assert rows[2].find("td").text == "\N{EN DASH} (1/3)"  # type: ignore[union-attr]
    assert [note.text for note in parsed.findall("p")] == ["A note with 1 < 2."]


def test_siunitx_sets_every_number_and_nothing_else() -> None:
    lines = to_siunitx(TABLE).splitlines()
    plus = r"\num[retain-explicit-plus]"
    assert r"a\textbar{}b \textless{}c\textgreater{} & \textbf{\num{0.5000 \pm 0.0100}} &  & -- \\" in lines
    difference = rf"\num{{-0.2500}} [\num{{-0.3000}}, {plus}{{+0.1000}}]"
    assert rf"b & \underline{{\num{{0.2500}}}} & {difference} & \textless{{}}0.0001 \\" in lines
    assert rf"c & -- (1/3) & {plus}{{+0.0000}} [{plus}{{+0.0000}}, {plus}{{+0.2000}}] & \num{{0.0400}} \\" in lines
    assert any(line.startswith(r"\sisetup{") for line in lines)


def test_forms_go_by_name() -> None:
    assert endings(None) == ("md", "tex", "csv")
    assert endings(["html", "siunitx", "html"]) == ("html", "siunitx.tex")
    assert set(endings(["md", "tex", "csv", "html", "siunitx"])) == set(ALL)
    with pytest.raises(UnknownNameError, match="format of tables 'htm': did you mean html"):
        endings(["htm"])
