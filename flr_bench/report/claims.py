"""What stands beside differences in words: what an interval means, what could be shown at all, who beats all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from flr_bench.report.comparisons import Comparison, compare
from flr_bench.report.reading import SuiteView

CLAIM = 0.05
"""The relative difference that papers of this kind report; whether it could be shown is said under tables."""
ONE_SIDED = 0.025


def declared_pairs(view: SuiteView) -> list[tuple[str, str]]:
    """The suite's contrasts as labels ``(of, against)``."""
    return [(str(c["of"]), str(c["against"])) for c in view.record.get("contrasts") or ()]


def named_rivals(view: SuiteView, pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    """Labels of the rivals that pairs ``(of, against)`` set a row against, by its label; controls are none."""
    found: dict[str, tuple[str, ...]] = {}
    for of, against in pairs:
        own, other = view.row(of), view.row(against)
        if own is not None and other is not None and other.method != own.method and not other.is_control:
            found[of] = (*found.get(of, ()), against)
    return found


def most_rivals(view: SuiteView) -> tuple[str, tuple[str, ...]]:
    """The row with most named rivals, the first of them on a tie, and those; ``("", ())`` without any."""
    found = named_rivals(view, declared_pairs(view))
    return max(found.items(), key=lambda item: len(item[1]), default=("", ()))


def interval_words(count: int) -> str:
    """What the columns of differences show, for captions."""
    return (
        "Differences are first minus second on the same examples, relative ones in percent of the second, each with "
        "its 95 % interval for other users and other seeds (users as clusters; SE users and SE seeds are both sources "
        "of error, t with Welch and Satterthwaite's d.o.f.); with one run on both sides it covers other users alone, "
        "for these trained models. Seeds: pairs where runs of one seed share their start, else the runs of each side. "
        f"p is two-sided, after Holm's correction over {count} contrast{'s' if count != 1 else ''}. Detectable: the "
        "smallest true difference that would be shown with 80 % power (two-sided 5 %, uncorrected)."
    )


# ---------------------------------------------------------------- what could be shown
def main_comparisons(view: SuiteView, data: str) -> list[Comparison]:
    """The suite's contrasts on its primary metric; without any, each competing row against the first one."""
    pairs = declared_pairs(view)
    if not pairs:
        rows = [row for row in view.rows_on(data) if not row.is_control and row.condition is None]
        pairs = [(row.label, rows[0].label) for row in rows[1:]]
    return compare(view, pairs, data, view.primary)


def detectable_note(comparisons: Sequence[Comparison], metric: str) -> tuple[str, ...]:
    """How large a true difference must be to be shown, over some comparisons; nothing without a finished one.

    Args:
        comparisons: those of one data set.
        metric: the metric's name as shown.
    """
    known = [(c, c.difference) for c in comparisons if c.difference is not None and c.difference.se > 0]
    if not known:
        return ()
    sizes = [d.detectable for _, d in known]
    users = " or ".join(str(n) for n in sorted({d.users for _, d in known}))
    runs = " or ".join(str(n) for n in sorted({d.seeds for _, d in known}))
    shares = [d.detectable / d.base for _, d in known if d.base > 0]
    able = sum(share <= CLAIM for share in shares)
    of = f"{len(known)} of {len(comparisons)}" if len(known) < len(comparisons) else str(len(known))
    text = (
        f"Minimum detectable difference in {metric} with {users} users and {runs} seed{'s' if runs != '1' else ''} "
        f"(80 % power, two-sided 5 %, uncorrected), over {of} comparisons: {_range(sizes, 4)}"
    )
    if shares:
        text += f"; relative to the other row {_range([100 * share for share in shares], 0, ' %')}"
    return (f"{text}. {_carries(able, len(known))}",)


def _range(values: Sequence[float], digits: int, unit: str = "") -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}{unit}"
    return f"median {median(values):.{digits}f}{unit} ({min(values):.{digits}f} to {max(values):.{digits}f}{unit})"


def _carries(able: int, count: int) -> str:
    if able == count:
        return "A relative difference of 5 % could be shown in each."
    which = "in none of them" if able == 0 else f"in {able} of them only"
    return f"A relative difference of 5 % could be shown {which}: elsewhere 'not shown' says nothing against it."


# ---------------------------------------------------------------- all rivals at once
def beats_all_notes(view: SuiteView, comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """For each row that is set against several rivals, whether it is shown to beat every one of them.

    Rivals are rows of other methods that the suite's contrasts name, without controls.
    """
    notes = []
    for label, named in named_rivals(view, [(c.of, c.against) for c in comparisons]).items():
        rivals = [c for c in comparisons if c.of == label and c.against in named]
        if len(rivals) > 1:
            notes.append(f"{label} against all {len(rivals)} rivals that the suite names for it: {_verdict(rivals)}")
    if notes:
        notes[-1] += " Rivals are named before the test, none is picked by its result; controls are no rivals."
    return tuple(notes)


def _verdict(rivals: Sequence[Comparison]) -> str:
    from flr_bench.evaluation.significance import beats_all

    known = [c.difference for c in rivals if c.difference is not None]
    if len(known) < len(rivals):
        return f"not tested, rankings are missing ({len(known)}/{len(rivals)} contrasts)."
    p = beats_all(known)
    not_shown = [c.against for c in rivals if c.difference is not None and c.difference.p_greater > ONE_SIDED]
    shown = "better than each of them" if not not_shown else "not shown to be better than each of them"
    where = f"; not against {', '.join(not_shown)}" if not_shown else ""
    least = f"p {p:.4f}" if p >= 1e-4 else "p <0.0001"
    return f"{shown} (intersection-union test, largest one-sided {least}, level 0.025){where}."
