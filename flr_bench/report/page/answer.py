"""The answer of a page in three sentences, made from the numbers: which is best, does FLR win, what matters.

Nothing is said that was not tested, and no rival is picked by its result.  The row with the highest mean *is*
picked by its result, so nothing is claimed of it; said is instead which rows can be *ruled out* as best (multiple
comparisons with the best, :func:`~flr_bench.evaluation.significance.may_be_best`): row i of k is, if the row on top is
better than it at one-sided 5 % / (k - 1).  The row that is truly best is then ruled out in at most 5 of 100 studies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from flr_bench.report.claims import declared_pairs, most_rivals, named_rivals
from flr_bench.report.comparisons import Comparison, compare, quality
from flr_bench.report.reading import Row, SuiteView
from flr_bench.report.render import number
from flr_bench.report.tables import metric_title, over_summary, reference_row

SHOWN = 0.05
"""A corrected probability up to this counts as shown."""
BETTER, WORSE, OPEN, UNKNOWN = "better", "worse", "no difference shown", "not computed yet"
NAMED = 8
"""Rows that a sentence names at most; more are counted."""

Seconds = Callable[[str], float | None]
"""Seconds to train and rank a row, by its label."""


@dataclass(frozen=True)
class Standing:
    """A competing row beside the one with the highest mean.

    Attributes:
        row: the row.
        mean: its metric, ``None`` while a run is missing.
        behind: the leader minus this row; ``None`` for the leader itself and for rows with missing runs.
        p: one-sided probability of so large a difference if this row were the best, corrected for all other rows.
    """

    row: Row
    mean: float | None
    behind: Comparison | None = None
    p: float | None = None

    @property
    def is_ruled_out(self) -> bool:
        """Whether the row is shown not to be the best."""
        return self.p is not None and self.p <= SHOWN


@dataclass(frozen=True)
class Answer:
    """What a page says of one data set before anything else.

    Attributes:
        data: the data set.
        leader: the row with the highest mean; ``None`` while no row has all its runs.
        standings: every competing row, best first, then those with missing runs.
        focus: label of the row that the suite sets against rivals; ``""`` if it names none.
        rivals: that row minus each of its rivals.
        parts: of each suite that varies FLR, its reference minus every other row.
        sentences: three of them.
        cheapest: the row that took the least time of those not ruled out as best; ``None`` where no time is known.
    """

    data: str
    leader: Standing | None
    standings: tuple[Standing, ...]
    focus: str
    rivals: tuple[Comparison, ...]
    parts: tuple[Comparison, ...]
    sentences: tuple[str, str, str]
    cheapest: Row | None

    @property
    def named(self) -> tuple[Row, ...]:
        """The rows that the sentences are about, each once."""
        focus = [s.row for s in self.standings if s.row.label == self.focus]
        found = [*([self.leader.row] if self.leader else []), *focus, *([self.cheapest] if self.cheapest else [])]
        return tuple({row.label: row for row in found}.values())


def answer(view: SuiteView, data: str, ablations: SuiteView | None, seconds: Seconds) -> Answer:
    """Answer the suite's question on one data set.

    Args:
        view: the suite.
        data: the data set.
        ablations: the suite that takes parts of FLR out, if there is one that ran on the data.
        seconds: what each row cost.
    """
    standings = _standings(view, data)
    leader = standings[0] if standings and standings[0].mean is not None else None
    focus, rivals = _focus(view, data)
    parts = taken_out(ablations, data) if ablations is not None and data in ablations.data else ()
    metric = metric_title(view.primary)
    cheapest = _cheapest(standings, seconds)
    sentences = (
        _best(view, data, leader, standings, metric),
        _against_rivals(focus, rivals, metric),
        f"{_matters(parts, ablations)} {_costs(cheapest, focus, seconds)}",
    )
    return Answer(data, leader, standings, focus, rivals, parts, sentences, cheapest)


def verdict(comparison: Comparison) -> str:
    """What a comparison shows of its first row, after Holm's correction."""
    if comparison.difference is None or comparison.p_holm is None:
        return UNKNOWN
    if comparison.p_holm > SHOWN:
        return OPEN
    return BETTER if comparison.difference.mean > 0 else WORSE


def taken_out(view: SuiteView, data: str) -> tuple[Comparison, ...]:
    """The whole method minus each row that lacks a part or has it otherwise."""
    reference = reference_row(view)
    if reference is None:
        return ()
    others = [r for r in view.rows if r.label != reference.label and not r.is_external and r.condition is None]
    return tuple(compare(view, [(reference.label, row.label) for row in others], data, view.primary))


def other_contrasts(view: SuiteView, data: str) -> tuple[Comparison, ...]:
    """The declared contrasts that are not with rivals: with controls, and within a method."""
    rivals = named_rivals(view, declared_pairs(view))
    return tuple(c for c in _declared(view, data) if c.against not in rivals.get(c.of, ()))


# ---------------------------------------------------------------- what is known
def _standings(view: SuiteView, data: str) -> tuple[Standing, ...]:
    from flr_bench.evaluation.significance import may_be_best

    rows = [row for row in view.rows_on(data) if not row.is_control and row.condition is None]
    found = [Standing(row, over_summary(view, row, data, view.primary).mean) for row in rows]
    ranked = sorted((s for s in found if s.mean is not None), key=lambda s: -(s.mean or 0.0))
    missing = [s for s in found if s.mean is None]
    if not ranked:
        return tuple(missing)
    behind = compare(view, [(ranked[0].row.label, s.row.label) for s in ranked[1:]], data, view.primary)
    rest = [
        Standing(s.row, s.mean, c, None if c.difference is None else may_be_best(c.difference, len(rows)))
        for s, c in zip(ranked[1:], behind, strict=True)
    ]
    return (ranked[0], *rest, *missing)


def _focus(view: SuiteView, data: str) -> tuple[str, tuple[Comparison, ...]]:
    """The row with most named rivals, with its comparisons."""
    label, rivals = most_rivals(view)
    return label, tuple(c for c in _declared(view, data) if c.of == label and c.against in rivals)


def _declared(view: SuiteView, data: str) -> list[Comparison]:
    """All contrasts together: each is corrected for the number of all, as in the suite's tables."""
    return compare(view, declared_pairs(view), data, view.primary)


def _cheapest(standings: Sequence[Standing], seconds: Seconds) -> Row | None:
    level = [s.row for s in standings if s.mean is not None and not s.is_ruled_out]
    costs = {row.label: spent for row in level if (spent := seconds(row.label)) is not None}
    return min((row for row in level if row.label in costs), key=lambda row: costs[row.label], default=None)


# ---------------------------------------------------------------- what is said
def _best(view: SuiteView, data: str, leader: Standing | None, standings: Sequence[Standing], metric: str) -> str:
    if leader is None:
        return f"On {data} no row has all its runs yet, so nothing can be said of which method is best."
    found = quality(view, leader.row, data, view.primary)
    between = "" if found is None else f" (95 % interval {number(found.low, 4)} to {number(found.high, 4)})"
    rule = " (a simple rule: no model that was trained has more)" if leader.row.family == "floor" else ""
    mean = f"{number(leader.mean or 0.0, 4)}{between}"
    said = f"On {data} the highest mean {metric} is that of {leader.row.label}{rule}, {mean}"
    others = [s for s in standings if s is not leader]
    open_ = [s.row.label for s in others if s.mean is not None and not s.is_ruled_out]
    missing = sum(s.mean is None for s in others)
    gap = f" ({missing} more lack runs)" if missing else ""
    if not others:
        return f"{said}, the only row."
    if not open_:
        which = (
            f"each of the {len(others)} other rows" if not missing else f"each of the {len(others) - missing} others"
        )
        return f"{said}, and {which} is ruled out as best{gap}."
    if len(open_) == len(others):
        return f"{said}, but none of the {len(others)} other rows can be ruled out as best: it may be chance."
    return f"{said}, but {len(open_)} of the {len(others)} other rows{gap} may be as good: {_names(open_, 4)}."


def _against_rivals(focus: str, rivals: Sequence[Comparison], metric: str) -> str:
    if not rivals:
        return "The suite names no rivals beforehand, so it tests no difference between methods."
    known = [c for c in rivals if verdict(c) != UNKNOWN]
    if not known:
        return f"{focus} cannot be compared with its {_count(rivals, 'rival')} yet: runs are missing."
    groups = {name: [c for c in known if verdict(c) == name] for name in (BETTER, WORSE, OPEN)}
    total = f"{len(known)} of the {len(rivals)} rivals" if len(known) < len(rivals) else _count(rivals, "rival")
    start = f"Of the {total} that the suite names for {focus}, "
    if not groups[BETTER] and not groups[WORSE]:
        return f"{start}no difference in {metric} could be shown to any{_seen(groups[OPEN])}."
    parts = [
        f"it is shown to be {word} than {_names([f'{c.against} ({_relative(c)})' for c in groups[word]])}"
        for word in (BETTER, WORSE)
        if groups[word]
    ]
    if groups[OPEN]:
        others = _names([c.against for c in groups[OPEN]])
        return f"{start}{' and '.join(parts)}; to {others} no difference could be shown{_seen(groups[OPEN])}."
    return f"{start}{' and '.join(parts)}."


def _seen(comparisons: Sequence[Comparison]) -> str:
    """How large a difference would have been seen, for what was not shown."""
    known = [c.difference for c in comparisons if c.difference is not None and c.difference.se > 0]
    shares = [d.detectable / d.base for d in known if d.base > 0]
    if not shares:
        return ""
    return (
        f" (with {known[0].users:,} users and {_seeds(known[0].seeds)}, a true difference would have to be about "
        f"{percent(median(shares))} to be seen four times out of five)"
    )


def _matters(parts: Sequence[Comparison], ablations: SuiteView | None) -> str:
    if not parts or ablations is None:
        return "Which part of FLR matters is not answered here: no suite that takes its parts out was run on this data;"
    known = [c for c in parts if verdict(c) != UNKNOWN]
    if not known:
        return "Which part of FLR matters cannot be said yet, for runs of its ablations are missing;"
    needed = [c for c in known if verdict(c) == BETTER]
    harmful = [c for c in known if verdict(c) == WORSE]
    start = f"Of the {len(known)} changes to FLR in suite {ablations.name}, "
    if not needed and not harmful:
        return f"{start}none makes a difference that could be shown{_seen(known)};"
    said = [f"{_names([f'{c.against} ({_relative(c)})' for c in needed])} {_lowers(needed)} quality"] if needed else []
    said += [f"{_names([f'{c.against} ({_relative(c)})' for c in harmful])} raises it"] if harmful else []
    return f"{start}{' and '.join(said)} (full against changed), the others show no difference;"


def _lowers(comparisons: Sequence[Comparison]) -> str:
    return "lowers" if len(comparisons) == 1 else "lower"


def _costs(cheapest: Row | None, focus: str, seconds: Seconds) -> str:
    spent = None if cheapest is None else seconds(cheapest.label)
    if cheapest is None or spent is None:
        return "what the rows cost was not measured here."
    said = (
        f"the cheapest row that is not ruled out as best is {cheapest.label}, with {duration(spent)} to train and rank"
    )
    own = seconds(focus) if focus else None
    return f"{said}." if own is None or focus == cheapest.label else f"{said}, where {focus} takes {duration(own)}."


# ---------------------------------------------------------------- words
def percent(share: float, *, signed: bool = False) -> str:
    """``0.123`` as ``12 %``, below ten with one decimal."""
    return f"{number(100 * share, 0 if abs(share) >= 0.1 else 1, signed=signed)} %"


def duration(seconds: float) -> str:
    """Seconds as a reader says them: ``35 s``, ``12 min``, ``3.2 h``."""
    if seconds < 1:
        return "under 1 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _relative(comparison: Comparison) -> str:
    difference = comparison.difference
    if difference is None:
        return ""
    if difference.relative is None:
        return number(difference.mean, 4, signed=True)
    return percent(difference.relative.value, signed=True)


def _names(labels: Sequence[str], most: int = NAMED) -> str:
    shown = list(labels[:most]) if len(labels) > most + 1 else list(labels)
    rest = [f"{len(labels) - most} more"] if len(labels) > len(shown) else []
    listed = shown + rest
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"


def _count(values: Sequence[object], word: str) -> str:
    return f"{len(values)} {word}{'s' if len(values) != 1 else ''}"


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "one seed"
