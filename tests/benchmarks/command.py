"""The command line of the benchmark: which rows, progress, a table, JSON and Markdown."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tests.benchmarks.measuring import matmul_peak, surroundings
from tests.benchmarks.rows import GROUPS, NAMES, Effort, Row, Spec, grouped, measure
from tests.benchmarks.workloads import PUBLIC_SHAPES, Place, Shape, make

TARGETS = {
    "cpu": {"sft": 1.6, "grpo": 20, "ranking": 7, "ranking_thought": 10, "exact": 20},
    "cuda": {"sft": 1.6, "grpo": 20, "ranking": 15, "ranking_thought": 20, "exact": 20},
}
"""How many times the plain way's speed the reference rows should reach."""

HEADER = ("row", "shape", "engine", "plain", "ratio", "target", "arithmetic", "memory", "agree", "tokens/s", "of peak")


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.language_model",
        description="Time the language-model engine beside the plain way, on the same weights and inputs.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write a Markdown report and the rows there")
    parser.add_argument("--only", action="append", choices=NAMES, help="rows of this name only; may be repeated")
    parser.add_argument(
        "--rows", action="append", choices=GROUPS, help="these groups of rows only; may be repeated; default: all"
    )
    parser.add_argument("--quick", action="store_true", help="the reference rows only, two turns each")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument(
        "--model",
        default="scratch",
        help=f"{', '.join(PUBLIC_SHAPES)} (random weights), or a folder or GGUF file with weights; "
        "default: the reference shape",
    )
    parser.add_argument("--batch", type=int, default=16, help="examples per batch (default 16)")
    parser.add_argument("--repeats", type=int, default=5, help="turns per row at most (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="threads on a CPU (default 2)")
    return parser.parse_args(arguments)


def specs_of(chosen: argparse.Namespace) -> list[Spec]:
    shape = Shape(model=chosen.model, batch=chosen.batch)
    groups = ["reference"] if chosen.quick else chosen.rows or list(GROUPS)
    specs = [spec for group in groups for spec in GROUPS[group](shape)]
    if chosen.model != "scratch":  # its widths are its own
        specs = [spec for spec in specs if spec.shape.width == shape.width and spec.shape.data == "synthetic"]
    return [spec for spec in specs if not chosen.only or spec.name in chosen.only]


def run(specs: list[Spec], place: Place, effort: Effort, keep: Callable[[list[Row]], None]) -> list[Row]:
    """Measure all rows, saying which one is at work; ``keep`` gets what there is after each."""
    around = surroundings(place)
    rows: list[Row] = []
    for shape, together in grouped(specs):
        work = make(shape, place)
        for spec in together:
            say(f"\r[{len(rows) + 1}/{len(specs)}] {spec.name} · {brief(work.describe())} …\x1b[K")
            row = measure(spec, work, effort, around["device"])
            rows.append(replace(row, surroundings=around))
            keep(rows)
            say(f"\r{row.name}: {seconds(row.engine_s)}, ratio {times(row.ratio)}\x1b[K\n")
        del work
    say("\r\x1b[K")
    return rows


def say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def brief(shape: dict[str, object]) -> str:
    model = shape["model"] if shape["model"] != "scratch" else f"width {shape['width']} x {shape['layers']}"
    data = "" if shape["data"] == "synthetic" else f", {shape['data']}"
    return (
        f"{model}{data}, prompt {shape['prompt']}, {shape['titles']:,} titles, batch {shape['batch']}, "
        f"G {shape['group']}, {shape['beams']} beams"
    )


def cells(rows: list[Row], device: str) -> list[tuple[str, ...]]:
    """The table, header first; the first row of each name has a target beside it."""
    table: list[tuple[str, ...]] = [HEADER]
    met: set[str] = set()
    for row in rows:
        aimed_at = row.name not in met and row.ratio is not None and row.shape["data"] == "synthetic"
        target = f"{TARGETS[device][row.name]:g}" if aimed_at else ""
        met.add(row.name)
        table.append(
            (
                row.name,
                brief(row.shape),
                seconds(row.engine_s),
                seconds(row.plain_s),
                times(row.ratio),
                target,
                times(row.flop_ratio),
                "" if row.peak_ratio is None else f"{row.peak_ratio:.2f}",
                {True: "yes", False: "NO", None: ""}[row.agree],
                f"{row.tokens_per_s:,.0f}",
                f"{row.peak_share:.0%}",
            )
        )
    return table


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def plain_table(table: list[tuple[str, ...]]) -> str:
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    lines = []
    for line in table:
        padded = [
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines) + "\n"


def markdown(rows: list[Row], device: str, peak: float, command: str) -> str:
    table = cells(rows, device)
    rule = "|".join(["---", "---"] + ["---:"] * (len(HEADER) - 2))
    lines = [f"| {' | '.join(line)} |" for line in table]
    around = rows[0].surroundings if rows else {}
    notes = sorted({f"- {row.name}: {row.note}" for row in rows if row.note})
    return "\n".join(
        [
            f"# Language-model engine beside the plain way: {around.get('device', device)}",
            "",
            "; ".join(f"{name} {value}" for name, value in around.items()),
            "",
            f"Best matrix product: {peak / 1e9:,.0f} GFLOP/s. Command: `{command}`",
            "",
            lines[0],
            f"|{rule}|",
            *lines[1:],
            "",
            *LEGEND,
            *notes,
            "",
        ]
    )


LEGEND = (
    "- engine, plain: median seconds of one batch, taken in turns; without plain: the engine alone",
    "- ratio: plain over engine; arithmetic: the same ratio of floating-point operations, so what would be won if time "
    "went with matrix products alone",
    "- memory: the engine's peak beyond weights over the plain way's",
    "- tokens/s: prompt and target tokens per second; of peak: the engine's operations per second over the best matrix "
    "product's",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    chosen = options(arguments)
    torch.set_num_threads(chosen.threads)
    place = Place(chosen.device, getattr(torch, chosen.dtype))
    peak = matmul_peak(place)
    effort = Effort(2 if chosen.quick else chosen.repeats, matmul_flops=peak)
    command = shlex.join(["python", "-m", "tests.benchmarks.language_model", *(arguments or sys.argv[1:])])

    def keep(rows: list[Row]) -> None:
        if chosen.json:
            write(chosen.json, rows)
        if chosen.out:
            chosen.out.mkdir(parents=True, exist_ok=True)
            kind = "_".join([chosen.device, chosen.dtype, Path(chosen.model).stem, *(chosen.rows or ())])
            report = markdown(rows, chosen.device, peak, command)
            (chosen.out / f"language_model_{kind}.md").write_text(report, encoding="utf-8")
            write(chosen.out / f"language_model_{kind}.json", rows)

    rows = run(specs_of(chosen), place, effort, keep)
    sys.stdout.write(plain_table(cells(rows, chosen.device)))
    sys.stdout.write(f"best matrix product: {peak / 1e9:,.0f} GFLOP/s\n")
    if any(row.agree is False for row in rows):
        raise SystemExit("engine and plain way disagree: see the rows marked NO")


def write(file: Path, rows: list[Row]) -> None:
    file.write_text(json.dumps([row.as_dict() for row in rows], indent=1) + "\n", encoding="utf-8")
