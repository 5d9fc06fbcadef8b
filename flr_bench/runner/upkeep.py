"""Keeping a store in order: checking it, showing what takes space, and removing what no recorded suite needs."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flr_bench.errors import FlrBenchError
from flr_bench.runner.cellfiles import MODEL, damage, read_sums
from flr_bench.runner.claims import Claims
from flr_bench.runner.store import Store, read_json

RECORDS = ("suites", "external", "searches")
"""Folders of records that name the cells behind their rows."""


@dataclass
class Checked:
    """What a check found.

    Attributes:
        cells: how many were looked at.
        unchecked: how many of them have no checksums, since they were written before there were any.
        damaged: what is wrong, by hash.
        moved: where they are now, as told to the user; empty without repair.
        misplaced: entries of the folder of cells that are no cells.
    """

    cells: int = 0
    unchecked: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    moved: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)


def check(store: Store, *, models: bool = True, repair: bool = False) -> Checked:
    """Compare every file of every cell with its checksum.

    Args:
        store: where.
        models: also the models' files, which may take long.
        repair: move damaged cells to quarantine, so that they run again, and rebuild the index.

    Raises:
        FlrBenchError: a damaged cell cannot be moved.
    """
    found = Checked()
    for name in sorted(store.present()):
        folder = store.folder(name)
        if not folder.is_dir():
            found.misplaced.append(name)
            continue
        found.cells += 1
        wrong = damage(folder, models=models)
        if wrong is not None:
            found.damaged[name] = wrong
            if repair:
                found.moved.append(store.quarantine(name, wrong))
        else:
            found.unchecked += read_sums(folder) is None
    if repair:
        store.index.rebuild()
    return found


# ---------------------------------------------------------------- sizes
def size(path: Path) -> int:
    """Bytes of all files below, or of the file itself; links count nothing."""
    try:
        if not path.is_dir():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            inner = list(entries)
    except FileNotFoundError:
        return 0
    out = 0
    for entry in inner:
        if entry.is_dir(follow_symlinks=False):
            out += size(Path(entry.path))
        else:
            out += entry.stat(follow_symlinks=False).st_size
    return out


@dataclass
class Part:
    """Some of a store: how many, and how many bytes."""

    count: int = 0
    bytes: int = 0


def overview(store: Store) -> dict[str, Part]:
    """Counts and bytes by kind of cell, the models apart, then of what else there is."""
    parts: dict[str, Part] = {}
    entries = store.entries()
    for name in sorted(store.present()):
        entry = entries.get(name)
        sizes = {} if entry is None else {file: noted[0] for file, noted in entry.files.items()}
        models = sum(bytes_ for file, bytes_ in sizes.items() if file.startswith(f"{MODEL}/"))
        kind = "damaged" if entry is None else entry.kind
        _add(parts, f"{kind} cells", sum(sizes.values()) - models)
        if models:
            _add(parts, "models", models)
    for name in ("superseded", "quarantine", "checkpoints", "tmp", "failures", "index"):
        folder = store.root / name
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            _add(parts, name, size(path))
    return parts


def _add(parts: dict[str, Part], name: str, bytes_: int) -> None:
    part = parts.setdefault(name, Part())
    part.count += 1
    part.bytes += bytes_


# ---------------------------------------------------------------- garbage
@dataclass(frozen=True)
class Garbage:
    """Something to remove.

    Attributes:
        what: its kind, for the summary.
        path: where it is.
        bytes: how large it is.
    """

    what: str
    path: Path
    bytes: int


def hashes_in(record: Mapping[str, Any]) -> set[str]:
    """Every cell that a record of rows names."""
    found: set[str] = set()
    for row in record.get("rows", ()):
        for seeds in row["cells"].values():
            for refs in seeds.values():
                found.add(refs["rank"])
                for role in ("fits", "assistants", "prepared"):
                    found.update(refs.get(role, ()))
    return found


def referenced(store: Store) -> set[str]:
    """Cells that some record needs, with what those build on; trials of tuning among them."""
    found: set[str] = set()
    for folder in RECORDS:
        for path in sorted((store.root / folder).glob("*.json")):
            found |= hashes_in(read_json(path))
    for path in sorted((store.root / "studies").glob("*.journal")):
        text = path.read_text(encoding="utf-8", errors="replace")
        found |= {name for name in store.present() - found if f'"{name}"' in text}
    return with_required(store, found)


def with_required(store: Store, hashes: set[str]) -> set[str]:
    """The cells and all they build on."""
    found, pending = set(hashes), list(hashes)
    while pending:
        path = store.folder(pending.pop()) / "cell.json"
        required = read_json(path).get("requires", {}).values() if path.is_file() else ()
        pending += set(required) - found
        found.update(required)
    return found


def garbage(store: Store, claims: Claims, *, models: bool = False) -> Iterator[Garbage]:
    """What can be removed: what no record needs, older results, damaged cells, leftovers.

    Args:
        store: where.
        claims: of this runner; what living ones hold is left alone.
        models: also the models of recorded fits, which only rankings that are not there yet would need.
    """
    needed, present = referenced(store), store.present()
    free = {name for name in present if claims.holder(name) is None}
    for name in sorted(free - needed):
        yield _garbage("cells of no recorded suite", store.folder(name))
    for name in sorted(free & needed) if models else ():
        if store.model(name).is_dir():
            yield _garbage("models", store.model(name))
    for what in ("superseded", "quarantine"):
        yield from (_garbage(what, path) for path in _inside(store.root / what))
    for path in _inside(store.root / "checkpoints"):
        if path.name in free:
            yield _garbage("checkpoints of finished cells", path)
    living = {path.stem for path in (store.root / "runners").glob("*.json")}
    for path in _inside(store.root / "tmp"):
        if path.name not in living:
            yield _garbage("unfinished cells of dead runs", path)


def _garbage(what: str, path: Path) -> Garbage:
    return Garbage(what, path, size(path))


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def collect(store: Store, *, models: bool, dry: bool, say: Callable[[str], None]) -> list[Garbage]:
    """Remove garbage, or only list it.

    A cell leaves its folder by one rename before its files go, so that an interruption leaves no half of one.

    Raises:
        FlrBenchError: the store cannot be written, or another run is at work in it.
    """
    with Claims(store.root, say) as claims:
        others = [path for path in (store.root / "runners").glob("*.json") if path.stem != claims.runner]
        if others and not dry:
            raise FlrBenchError(
                f"another run is working in the store {store.root} ({others[0].stem}): what it needs cannot be "
                f"told yet; wait for it, or see what there is with --dry-run; if it is dead, remove {others[0]}"
            )
        found = list(garbage(store, claims, models=models))
        if not dry:
            for item in found:
                _remove(item, claims.scratch)
            store.index.rebuild()
    return found


def _remove(item: Garbage, scratch: Path) -> None:
    goal = scratch / f"{item.path.parent.name}-{item.path.name}"
    try:
        item.path.rename(goal)
    except OSError as error:
        raise FlrBenchError(f"cannot remove {item.path}: {error.strerror or error}") from error
    shutil.rmtree(goal, ignore_errors=True) if goal.is_dir() else goal.unlink()


def by_kind(found: list[Garbage]) -> dict[str, Part]:
    """Counts and bytes of garbage, by kind."""
    counts, sizes = Counter(item.what for item in found), Counter[str]()
    for item in found:
        sizes[item.what] += item.bytes
    return {what: Part(count, sizes[what]) for what, count in counts.items()}
