"""Fill the README's generated parts: results from ``results/``, lists from the registry.

``python tools/update_readme.py`` rewrites the text between the markers, ``--check`` only says
whether it would change anything.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path("results/main/cpu")
METRIC = "ndcg@10"

SEARCHED, BEAMS = "flr · sft+rl", "10"
"""The model and the published number of beams that the README speaks of."""


def results() -> str:
    """Suite main's primary metric on every data set published, its figure, and what beam search misses."""
    published = [path.parent for path in sorted(ROOT.glob(f"results/*/{RESULTS.name}/manifest.json"))]
    columns = [column for folder in published for column in Column.read(folder)]
    if not columns:
        return ""
    figures = [path.relative_to(ROOT) for path in sorted((ROOT / RESULTS / "figures").glob("quality*.png"))]
    shown = [f"![Intervals of the first column's numbers]({path})" for path in figures[:1]]
    return "\n\n".join([caption(columns), "\n".join(table(columns)), *shown, *searches()])


@dataclass(frozen=True)
class Column:
    """Suite main on one data set.

    Attributes:
        data: name of the data set.
        path: folder of its tables, relative to the repository.
        seeds: how many there are.
        values: label of a row (controls left out) -> mean and standard deviation over seeds, the latter
            empty for a method without randomness.
    """

    data: str
    path: Path
    seeds: int
    values: dict[str, tuple[float, str]]

    @classmethod
    def read(cls, folder: Path) -> list[Self]:
        """The data sets of one published folder; none if it is of another suite."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if RESULTS.parent.name not in (manifest["suite"].partition("@")[0], manifest.get("variant_of")):
            return []
        controls = {row["label"] for row in manifest["rows"] if row["control"]}
        values: dict[str, dict[str, tuple[float, str]]] = {data: {} for data in manifest["order"]}
        for row in csv.DictReader((folder / "main.csv").read_text(encoding="utf-8").splitlines()):
            if row["method"] not in controls and row[METRIC]:
                values[row["data"]][row["method"]] = (float(row[METRIC]), row[f"{METRIC}_sd"])
        where, seeds = folder.relative_to(ROOT), len(manifest["seeds"])
        return [cls(data, where, seeds, found) for data, found in values.items()]

    def cell(self, label: str) -> str:
        """The value of one row as text; the best is bold."""
        if label not in self.values:
            return ""
        value, spread = self.values[label]
        text = f"{value:.4f}" + (f" ± {float(spread):.4f}" if spread else "")
        return f"**{text}**" if value == max(mean for mean, _ in self.values.values()) else text


def caption(columns: Sequence[Column]) -> str:
    """What the table shows, and where the whole of it is."""
    seeds = ", ".join(f"{column.seeds} seeds on {column.data}" for column in columns)
    return (
        f"{METRIC.upper()} on the test examples, all items of the catalog as candidates: mean ± standard deviation "
        f"over seeds ({seeds}), the highest mean in bold. After a language model's name: its training (`sft`, or "
        "`sft+rl`) and its decoding. All metrics, controls, users, budgets and what could have been shown: "
        + ", ".join(f"[{column.data}]({column.path / 'main.md'})" for column in columns)
        + "."
    )


def table(columns: Sequence[Column]) -> list[str]:
    """Lines of a table with a row for each method and a column for each data set."""
    labels = list(dict.fromkeys(label for column in columns for label in column.values))
    return [
        "| " + " | ".join(["Method", *(column.data for column in columns)]) + " |",
        "|---|" + "---:|" * len(columns),
        *("| " + " | ".join([label, *(column.cell(label) for column in columns)]) + " |" for label in labels),
    ]


def searches() -> list[str]:
    """One sentence on what the published beam search misses; none as long as nothing of it is published."""
    table = ROOT / RESULTS / "search.csv"
    if not table.is_file():
        return []
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    row = next((row for row in rows if (row["model"], row["beams"]) == (SEARCHED, BEAMS)), None)
    if row is None or not row["missed"]:
        return []
    spread = f" ± {float(row['missed_sd']):.2f}" if row["missed_sd"] else ""
    ndcg = f"{float(row['ndcg_difference']):+.4f}" if row["ndcg_difference"] else "an unknown amount"
    ends = [f"{float(row[f'ndcg_difference_{end}']):+.4f}" for end in ("low", "high") if row[f"ndcg_difference_{end}"]]
    interval = f" (95 % interval {ends[0]} to {ends[1]})" if ends else ""
    return [
        f"Decoding error: held against an exact search of the same model, {BEAMS} beams, the published number, miss "
        f"{float(row['missed']):.2f}{spread} items of the true top {row['k']} of `{SEARCHED}` with decoding plain, "
        f"which changes NDCG@{row['k']} by {ndcg}{interval}; "
        f"[all models and numbers of beams]({RESULTS / 'search.md'})."
    ]


def methods() -> str:
    """One row for each method that comes with the package."""
    from flr_bench.registry import RECOMMENDERS

    rows = [
        f"| `{name}` | {method.family} | {_summary(method)} | {' → '.join(method.stages)} | {method.citation} |"
        for name, method in RECOMMENDERS
        if _is_ours(method)
    ]
    head = ["| method | family | what it is | stages | source |", "|---|---|---|---|---|"]
    return "\n".join(head + rows)


def names() -> str:
    """The names of decodings, metrics, data sets and kinds of files that come with the package."""
    from flr_bench.registry import DECODINGS, METRICS, SOURCES

    entries: dict[str, Iterable[tuple[str, Any]]] = {
        "Decodings": DECODINGS,
        "Metrics": METRICS,
        "Data sets": [(name, source) for name, source in SOURCES if source.embedded],
        "Kinds of files to import": [(name, source) for name, source in SOURCES if not source.embedded],
    }
    return "\n".join(
        f"- {title}: {', '.join(f'`{name}`' for name, entry in some if _is_ours(entry))}"
        for title, some in entries.items()
    )


def _summary(entry: object) -> str:
    return (inspect.getdoc(entry) or "").partition("\n")[0].rstrip(".")


def _is_ours(entry: object) -> bool:
    return getattr(entry, "__module__", "").partition(".")[0] in {"flr_bench", "baselines"}


PARTS: dict[str, Callable[[], str]] = {"results": results, "methods": methods, "names": names}


def render(text: str) -> str:
    """Return the README ``text`` with every generated part filled anew.

    Raises:
        ValueError: a part's markers are missing.
    """
    for name, part in PARTS.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"README.md lacks the markers {begin} and {end}")
        filling = part()
        text = before + begin + (f"\n{filling}\n" if filling else "\n") + end + after
    return text


def main() -> int:
    """Rewrite the README, or check it; the exit code is 1 if ``--check`` finds it out of date."""
    parser = argparse.ArgumentParser(description="fill the README's generated parts")
    parser.add_argument("--check", action="store_true", help="change nothing, fail if something would change")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = render(old)
    if check and new != old:
        sys.stderr.write("README.md is out of date: run python tools/update_readme.py\n")
        return 1
    if new != old:
        readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
