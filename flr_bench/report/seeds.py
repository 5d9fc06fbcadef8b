"""What the runs of one seed, and what all seeds, have in common: it decides how to compare and what a spread means."""

from __future__ import annotations

from flr_bench.report.reading import Row, SuiteView


def share_start(view: SuiteView, first: Row, second: Row, data: str) -> bool:
    """Whether two rows' runs of one seed share their start, so that they are compared seed by seed.

    They do if they are of one method (its initial values and order of examples come from the seed), build on a common
    fitted cell of that seed (an earlier stage, an assistant), stand under a condition that the seed draws, or both
    learn from training examples that the seed draws.  Otherwise equal numbers of seeds mean nothing, and the
    variances of both rows add up.
    """
    if first.seeds(data) != second.seeds(data) or first.is_external or second.is_external:
        return False
    if first.method == second.method or first.condition == second.condition is not None:
        return True
    common = all(_fitted(first, data, seed) & _fitted(second, data, seed) for seed in first.seeds(data))
    return common or (_draws_examples(view, first) and _draws_examples(view, second))


def seed_words(view: SuiteView, data: str) -> str:
    """How many seeds there are and what they share, for captions."""
    seeds = len(view.record.get("seeds") or ())
    if seeds < 2:
        return (
            "One seed: nothing is known of the spread between seeds, and intervals are over users alone, "
            "for these trained models."
        )
    backbones = [
        [row.cells[data][seed].prepared for seed in row.seeds(data)]
        for row in view.rows_on(data)
        if len(row.seeds(data)) > 1 and all(row.cells[data][seed].prepared for seed in row.seeds(data))
    ]
    if not backbones:
        return f"The {seeds} seeds share data and split."
    if all(len(set(prepared)) == 1 for prepared in backbones):
        return (
            f"The {seeds} seeds share data, split and, where there is a language model, its one pretrained backbone: "
            "the spread between seeds leaves pretraining out."
        )
    return f"The {seeds} seeds share data and split; backbones are pretrained anew for each seed."


def _fitted(row: Row, data: str, seed: str) -> set[str]:
    refs = row.cells[data][seed]
    return {*refs.fits, *refs.assistants}


def _draws_examples(view: SuiteView, row: Row) -> bool:
    """Whether a stage of the row learns from training examples that the seed draws."""
    budgets = view.settings.get("budgets") or {}
    return any((budgets.get(stage) or {}).get("train_examples") is not None for stage in row.stages)
