"""What stands above and below a table: who was counted, under which settings, and what is missing."""

from __future__ import annotations

import json
from typing import Any

from flr_bench.report.budgets import budget_sentence
from flr_bench.report.reading import Cell, SuiteView
from flr_bench.report.render import GAP


def caption(view: SuiteView, data: str) -> str:
    """Counts and settings of one data set, the same for every table of a suite."""
    settings = view.settings
    parts = [
        f"Suite {view.version}, profile {view.profile}, {data}: {test_counts(view, data)}",
        f"split {_split(_split_of(view, data))}, history of at most {settings.get('max_history', '?')} items, "
        f"items of the history {_seen(settings.get('seen_items'))}",
        f"seeds {', '.join(str(seed) for seed in view.record.get('seeds', []))} (methods without randomness run once)",
        *_filters(_manifest_of(view, data)),
        *_limits(settings),
        *_budgets(settings.get("budgets")),
        *_tuned(settings.get("tuned")),
        *remarks(view, data),
        *_external(view, data),
    ]
    return " ".join(filter(None, ("; ".join(parts) + ".", budget_sentence(view, data))))


def _tuned(tuned: Any) -> list[str]:
    """That parameters are not the suite's own, but chosen on valid, and at what effort."""
    if not isinstance(tuned, dict):
        return []
    about = f"sha256 {str(tuned['sha256'])[:12]}; {tuned['effort']}"
    return [f"parameters of the methods in {tuned['file']} tuned on valid ({about})"]


def _external(view: SuiteView, data: str) -> list[str]:
    """Where the rankings of external rows come from."""
    shown = []
    for row in view.rows:
        cells = view.rank_cells(row, data) if row.is_external else []
        made = [cell.inputs["fit"]["external"] for cell in cells]
        said = sorted({str(fit["provenance"]) for fit in made if fit["provenance"]})
        sums = ", ".join(str(fit["sha256"])[:12] for fit in made)
        shown += [f"{row.label} ({'; '.join([*said, f'sha256 {sums}'])})"] if made else []
    if not shown:
        return []
    return [
        f"external rows were ranked by other code on the exported examples and only measured here: {', '.join(shown)}"
    ]


def remarks(view: SuiteView, data: str) -> tuple[str, ...]:
    """What the data's source must tell every reader, for example that train was rebuilt from histories."""
    return tuple(str(remark).rstrip(".") for remark in _manifest_of(view, data).get("remarks") or ())


def test_counts(view: SuiteView, data: str) -> str:
    """``1000 test examples of 166 users``, from the cells themselves (``?`` while there are none)."""
    counts = sorted({_counts(cell) for row in view.rows for cell in view.rank_cells(row, data)})
    shown = [f"{examples} test examples of {users} users" for examples, users in counts]
    return " or ".join(shown) or "no finished cell"


def missing_notes(view: SuiteView, data: str) -> tuple[str, ...]:
    """One line that counts the missing cells and one per recorded failure."""
    missing = [(row, seed, cell) for row, where, seed, cell in view.missing() if where == data]
    # Data that the suite was not run on has no table of its own: every table tells of it.
    others = tuple(text for where, text in view.record.get("left_out") or () if where == data or where not in view.data)
    if not missing:
        return others
    planned = sum(len(row.seeds(data)) for row in view.rows)
    lines = [
        f"{len(missing)} of {planned} rankings are missing: '{GAP} (found/planned)' stands where a seed is absent; "
        "no mean is taken over the others."
    ]
    for row, seed, cell in missing:
        refs = row.cells[data][seed]
        errors = [
            e
            for e in (view.store.failure(h) for h in (*refs.prepared, *refs.fits, *refs.assistants, cell))
            if e is not None
        ]
        lines += [f"{row.label}, seed {seed}: {errors[0]}"] if errors else []
    return (*lines, *others)


def _counts(cell: Cell) -> tuple[int, int]:
    return int(cell.figures.get("examples", 0)), int(cell.figures.get("users", 0))


def _split_of(view: SuiteView, data: str) -> Any:
    """The data's own split: a profile may use several, none of them the suite's."""
    return (_manifest_of(view, data).get("recipe") or {}).get("split") or view.settings.get("split")


def _manifest_of(view: SuiteView, data: str) -> dict[str, Any]:
    return (view.record.get("data_manifests") or {}).get(data) or {}


def _split(split: Any) -> str:
    if not isinstance(split, dict):
        return str(split or "?")
    if split.get("name") == "given":
        targets = ", ".join(f"{key} {_short(value)}" for key, value in sorted(split.items()) if key != "name")
        return "given by the source" + (f" ({targets})" if targets else "")
    rest = ", ".join(f"{key} {_short(value)}" for key, value in sorted(split.items()) if key != "name")
    return f"{split.get('name', '?')} ({rest})" if rest else str(split.get("name", "?"))


def _filters(manifest: dict[str, Any]) -> list[str]:
    """Recipe and filters where they leave something out, and the share that a sample keeps."""
    filters = (manifest.get("recipe") or {}).get("filters") or {}
    told = {key: value for key, value in filters.items() if value and key != "sample"}
    if told.get("duplicates") == "refuse":
        del told["duplicates"]
    recipe = told.pop("recipe", "core")
    rules = ", ".join(f"{key} {_short(value)}" for key, value in sorted(told.items()))
    shown = [f"recipe {recipe} ({rules})" if rules else f"recipe {recipe}"] if rules or recipe != "core" else []
    for step in manifest.get("filtering") or ():
        if "share_of_interactions" in step:
            shown.append(f"{step['step']} ({100 * step['share_of_interactions']:.1f} % of the interactions)")
    return shown


def _seen(seen: Any) -> str:
    return {"allowed": "may be recommended", "excluded": "are not recommended"}.get(str(seen), "?")


def _limits(settings: dict[str, Any]) -> list[str]:
    names = {"valid_examples": "valid examples for choices", "train_examples": "training examples a seed"}
    shown = [f"{settings[key]} {what}" for key, what in names.items() if settings.get(key) is not None]
    if settings.get("threads") is not None:
        shown.append(f"threads per cell: {settings['threads']}")
    return shown


def _budgets(budgets: Any) -> list[str]:
    if not isinstance(budgets, dict):
        return []
    words = {"watch": "watching", "epochs": "epochs at most", "patience": "patience", "train_examples": "examples"}
    lines = []
    for stage, budget in sorted(budgets.items()):
        given = budget if isinstance(budget, dict) else {}
        shown = [f"{words.get(k, k)} {_short(v)}" for k, v in sorted(given.items()) if v is not None]
        lines += [f"{stage}: {', '.join(shown)}"] if shown else []
    return [f"budgets ({' / '.join(lines)})"] if lines else []


def sizes(settings: dict[str, Any]) -> str:
    """How many examples a fit sees and how long it may train, for captions of other than a suite's rows."""
    return "; ".join([*_limits(settings), *_budgets(settings.get("budgets"))])


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
