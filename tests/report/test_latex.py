from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from flr_bench.report import write_tables
from tests.report.synthetic_store import ABLATION_ROWS, SyntheticSuite, drop_rank, write_store


@pytest.mark.tex
def test_the_tables_compile_with_booktabs_alone(tmp_path: Path) -> None:
    store = write_store(tmp_path / "runs")
    write_store(tmp_path / "runs", SyntheticSuite(name="ablations", rows=ABLATION_ROWS, contrasts=()))
    drop_rank(store, "main", "sasrec", 1, error="100 % of C:\\memory_#1 {was} ~ full & ^ $")
    write_tables(store, tmp_path / "results", None, None)
    tables = sorted((tmp_path / "results").rglob("*.tex"))
    assert tmp_path / "results/main/cpu/main.tex" in tables
    compile_pdf(tables, tmp_path)


def compile_pdf(tables: Sequence[Path], folder: Path) -> None:
    inputs = "\n".join(rf"\input{{{table}}}" for table in tables)
    document = (
        f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    (folder / "document.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "document.tex"],
        cwd=folder, capture_output=True, text=True, errors="replace", timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert (folder / "document.pdf").stat().st_size > 10_000
