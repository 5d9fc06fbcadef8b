"""What ended training: a table tells for how many of its fits it was the epoch budget.

A fit that the budget ended might have gone on improving.  Methods differ in how many epochs they need: BERT4Rec
takes many times SASRec's (Petrov, Macdonald: A Systematic Review and Replicability Study of BERT4Rec, RecSys 2022,
arXiv 2207.07483).  Equal epochs are equal only where patience had the last word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flr_bench.report.reading import Cell, SuiteView

BUDGET, PATIENCE = "budget", "patience"


def budget_sentence(view: SuiteView, data: str) -> str:
    """One sentence on the finished fits behind the rows of a data set; ``""`` where none trained by epochs."""
    refs = [row.cells[data][seed] for row in view.rows_on(data) for seed in row.seeds(data)]
    hashes = dict.fromkeys(name for ref in refs for name in (*ref.fits, *ref.assistants))
    cells = [cell for cell in map(view.store.cell, hashes) if cell is not None and cell.entry.training]
    stages: dict[str, set[str]] = {}
    for cell in cells:
        stages.setdefault(cell.entry.training["method"], set()).add(cell.entry.training["stage"])
    return ended_by_budget([_ending(cell, several=len(stages[cell.entry.training["method"]]) > 1) for cell in cells])


def ended_by_budget(fits: Iterable[tuple[str, str, bool]]) -> str:
    """Say ``The epoch budget, not patience, ended 12 of 15 fits (bert4rec 3 of 3, sasrec 2 of 3).``, or nothing.

    Args:
        fits: of each the method (and stage), what ended training, and whether there was patience to end it.
    """
    counts: dict[str, list[int]] = {}
    unwatched: dict[str, None] = {}
    for name, ending, patient in fits:
        if ending not in (BUDGET, PATIENCE):
            continue  # nothing was trained by epochs
        if not patient:
            unwatched[name] = None
            continue
        found = counts.setdefault(name, [0, 0])
        found[0] += ending == BUDGET
        found[1] += 1
    return " ".join(filter(None, (_counted(counts), _not_counted(list(unwatched)))))


def _counted(counts: Mapping[str, list[int]]) -> str:
    by_budget, every = (sum(found[place] for found in counts.values()) for place in (0, 1))
    if not every:
        return ""
    ended = ", ".join(f"{name} {found[0]} of {found[1]}" for name, found in counts.items() if found[0])
    return f"The epoch budget, not patience, ended {by_budget} of {every} fits" + (f" ({ended})." if ended else ".")


def _not_counted(names: list[str]) -> str:
    return f"Without patience, all epochs of the budget: {', '.join(names)}." if names else ""


def _ending(cell: Cell, *, several: bool) -> tuple[str, str, bool]:
    """The method, with the stage where it has several here; what ended it, and whether there was patience."""
    about = cell.entry.training
    name = f"{about['method']} {about['stage']}" if several else str(about["method"])
    return name, str(cell.outcome.get("stopped_by")), about["patience"] is not None
