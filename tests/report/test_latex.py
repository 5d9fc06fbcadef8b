from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from flr_bench.report import write_tables
from flr_bench.report.look import Look
from tests.report.synthetic_store import ABLATION_ROWS, MAIN_ROWS, SyntheticSuite, crossed, drop_rank, write_store


@pytest.mark.tex
def test_the_tables_compile_with_booktabs_alone(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs")
    write_store(tmp_path / "runs", SyntheticSuite(name="ablations", rows=ABLATION_ROWS, contrasts=()))
    drop_rank(store, "main", "sasrec", 1, error="100 % of C:\\memory_#1 {was} ~ full & ^ $")
    write_tables(store, tmp_path / "results", None, None)
    tables = sorted((tmp_path / "results").rglob("*.tex"))
    assert tmp_path / "results/main/cpu/main.tex" in tables
    compile_pdf(tables, tmp_path)


@pytest.mark.tex
@pytest.mark.siunitx
def test_the_tables_compile_with_siunitx(tmp_path: Path) -> None:
    suite = SyntheticSuite(
        rows=(*MAIN_ROWS[:3], *crossed("flr", ("sft",), 0.16)), contrasts=(("sasrec", "popularity"),)
    )
    store = write_store(tmp_path / "runs", suite)
    parts = ("main", "contrasts", "strata", "titles", "decoding", "cost")
    write_tables(store, tmp_path / "results", None, None, look=Look(parts, ("siunitx.tex",), against="sasrec"))
    tables = sorted((tmp_path / "results").rglob("*.siunitx.tex"))
    assert {path.name.partition(".")[0] for path in tables} == {*parts, "against"}
    assert r"\num{0." in tables[0].read_text()
    compile_pdf(tables, tmp_path, "siunitx")


def compile_pdf(tables: Sequence[Path], folder: Path, *packages: str) -> None:
    inputs = "\n".join(rf"\input{{{table}}}" for table in tables)
    used = "\n".join(rf"\usepackage{{{name}}}" for name in ("booktabs", *packages))
    document = f"\\documentclass{{article}}\n{used}\n\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    (folder / "document.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"],
        cwd=folder, capture_output=True, text=True, errors="replace", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert (folder / "document.pdf").stat().st_size > 10_000
