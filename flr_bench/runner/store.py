"""The store: one folder per cell, whole or absent, shared by all suites.

::

    <root>/store.json                        version of the format
    <root>/cells/<hash>/                     cell.json, metrics.json, environment.json, log.txt, model/ and
                                             system.json (:mod:`flr_bench.runner.telemetry`); of a ranking
                                             per_example.parquet, ranking.parquet and, if asked for,
                                             thoughts.parquet (:mod:`flr_bench.runner.traces`); checksums of all of
                                             them in sums.json (:mod:`flr_bench.runner.cellfiles`)
    <root>/index/                            what all cells say of themselves (:mod:`flr_bench.runner.index`)
    <root>/superseded/<hash>-<n>/            cells that were computed anew (``--mode always``) with other results
    <root>/quarantine/<hash>-<n>/            damaged cells, each with reason.json
    <root>/failures/<hash>.json              the last failure of a cell that is not there
    <root>/suites/<name@n>-<profile>.json    rows of a suite and the cells behind them
    <root>/external/<name@n>-<profile>.json  rows that other code ranked and flr-bench score measured
    <root>/checkpoints/<hash>/               where an interrupted fit goes on; removed once its cell is there
    <root>/searches/<name@n>-<profile>.json  rows of the last ``flr-bench inspect search`` on a suite
    <root>/tables/<name@n>-<profile>.json    what the tables were last written from
    <root>/claims/, <root>/runners/          who computes what now (:mod:`flr_bench.runner.claims`)
    <root>/tmp/<runner>/                     cells being computed; removed when the run ends, or the next one starts
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from flr_bench.errors import DamagedFileError, FlrBenchError
from flr_bench.runner.cell import Cell
from flr_bench.runner.cellfiles import MODEL, damage, difference, files_of, sync_folder, write_sums
from flr_bench.runner.index import Entry, Index, present_cells
from flr_bench.runner.pretty import pretty

FORMAT = 1
"""Version of the folder's layout; a store of another version is refused, never guessed at."""


def ensure_writable(folder: Path, what: str, option: str) -> None:
    """Create ``folder`` if need be and prove that a file can be written into it.

    Args:
        folder: an output folder.
        what: how the message names it, for example ``"results"``.
        option: the command-line option that chooses another.

    Raises:
        FlrBenchError: it cannot be written; says why.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable-") as probe:
            probe.write(b"x")
            probe.flush()
    except OSError as error:
        reason = error.strerror or str(error)
        raise FlrBenchError(
            f"cannot write to the {what} folder {folder}: {reason}; mend that or choose another with {option}"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON through a temporary file and rename it: readers see the old or the new content.

    Raises:
        FlrBenchError: it cannot be written; the system's error is its cause.
    """
    text = pretty(value, 2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FlrBenchError(
            f"cannot write {path}: {reason}; mend that and run again, finished cells are kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it
    os.umask(mask)
    return mask


def read_json(path: Path) -> Any:
    """Read a JSON file of the store.

    Raises:
        DamagedFileError: it is missing or not JSON.
    """
    try:
        return from_json(path.read_bytes())
    except (OSError, ValueError) as error:
        what = "its folder" if path.parent.parent.name == "cells" else "it"  # a cell is whole or not at all
        raise DamagedFileError(f"{path} cannot be read ({error}); remove {what} and run again") from error


class Store:
    """Cells on disk.

    Args:
        root: the folder; created on the first write.
        runner: name of the runner (:class:`flr_bench.runner.claims.Claims`) that writes, which has a folder of its
            own for what is not finished; ``""`` for who writes without one.

    Raises:
        FlrBenchError: the folder was written by another version of flr-bench.
    """

    def __init__(self, root: Path, runner: str = "") -> None:
        """Open the store, or a folder that will become one."""
        self.root = root
        self.runner = runner
        self.index = Index(root, runner or "writer")
        self._sound: set[str] = set()
        self._check_format()

    def _check_format(self) -> None:
        marker = self.root / "store.json"
        if not marker.exists():
            return
        content = read_json(marker)
        found = content.get("format") if isinstance(content, dict) else None
        if found != FORMAT:
            raise FlrBenchError(
                f"{self.root} is a store of format {found}, this flr-bench reads format {FORMAT}; "
                "use another folder with --runs, or the version of flr-bench that wrote it"
            )

    def folder(self, cell_hash: str) -> Path:
        """Where the cell lies, or will."""
        return self.root / "cells" / cell_hash

    def model(self, cell_hash: str) -> Path:
        """The cell's ``model`` folder."""
        return self.folder(cell_hash) / "model"

    def checkpoints(self, cell_hash: str) -> Path:
        """Where the fit of the cell may keep itself against interruption; whoever writes there makes it."""
        return self.root / "checkpoints" / cell_hash

    def __contains__(self, cell_hash: str) -> bool:
        """Tell whether the cell is there; a cell is there whole or not at all."""
        return (self.folder(cell_hash) / "cell.json").is_file()

    def present(self) -> set[str]:
        """The finished cells, by one look at the folder."""
        return present_cells(self.root)

    def initialise(self) -> None:
        """Create the folders and the format marker.

        Raises:
            FlrBenchError: the folder cannot be written.
        """
        ensure_writable(self.root, "runs", "--runs")
        for name in ("cells", "external", "failures", "searches", "suites", "tables", "tmp"):
            (self.root / name).mkdir(exist_ok=True)
        if not (self.root / "store.json").exists():
            write_json(self.root / "store.json", {"format": FORMAT})

    @property
    def scratch(self) -> Path:
        """Where the runner writes what is not finished."""
        return self.root / "tmp" / self.runner

    def sweep(self) -> None:
        """Remove the runner's own unfinished cells, and checkpoints of finished ones; only while it computes none."""
        for leftover in self.scratch.iterdir() if self.runner and self.scratch.is_dir() else ():
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in (self.root / "checkpoints").glob("*"):
            if folder.name in self and not (self.root / "claims" / folder.name).exists():
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self, cell: Cell) -> Iterator[Path]:
        """A folder to compute ``cell`` in; it becomes the cell if the block ends without an error.

        A cell that was there before stays if the results are the same, else it is moved to ``superseded``.  One
        that another runner has put there meanwhile stays, and what was computed here is dropped: both are results
        of the same inputs.  Yields the temporary folder.
        """
        self.scratch.mkdir(exist_ok=True)
        before = self.folder(cell.hash).exists()
        temporary = Path(tempfile.mkdtemp(prefix=f"{cell.hash}-", dir=self.scratch))
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's are its owner's only; others may read results
        try:
            yield temporary
            write_json(temporary / "cell.json", cell.record())
            write_sums(temporary)
            if not before or self._make_room(temporary, self.folder(cell.hash)):
                self.place(temporary, self.folder(cell.hash))
                sync_folder(self.root / "cells")
            (self.root / "failures" / f"{cell.hash}.json").unlink(missing_ok=True)
            shutil.rmtree(self.checkpoints(cell.hash), ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _make_room(self, made: Path, final: Path) -> bool:
        """Move the older cell away if it has other results or fewer files; ``False`` if it stays."""
        if final.exists():
            if not _lacks(final, made) and difference(final, made) is None:
                return False
            self.set_aside(final, "superseded")
        return True

    def place(self, made: Path, final: Path) -> bool:
        """Make the whole folder ``made`` a cell, by one rename; ``False`` if the cell is there already."""
        try:
            made.rename(final)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            return False
        self._note(final.name)
        return True

    def _note(self, cell_hash: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the index finds it by itself
            self.index.append([Entry.of(self.folder(cell_hash))])

    def set_aside(self, folder: Path, where: str, reason: str | None = None) -> Path | None:
        """Move a cell out of the way.

        Args:
            folder: the cell.
            where: ``"superseded"`` or ``"quarantine"``.
            reason: what is wrong with it, which is written beside its files.

        Returns:
            Where it is now; ``None`` if another runner has moved it.

        Raises:
            FlrBenchError: it cannot be moved.
        """
        try:
            (self.root / where).mkdir(exist_ok=True)
            numbers = (f"{folder.name}-{n}" for n in itertools.count(1))
            goal = next(goal for name in numbers if not (goal := self.root / where / name).exists())
            folder.rename(goal)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise FlrBenchError(f"cannot move {folder} to {self.root / where}: {error.strerror or error}") from error
        if reason is not None:
            write_json(goal / "reason.json", {"format": 1, "cell": folder.name, "reason": reason})
        return goal

    def quarantine(self, cell_hash: str, reason: str) -> str:
        """Move a damaged cell out of the way; returns what to tell the user."""
        goal = self.set_aside(self.folder(cell_hash), "quarantine", reason)
        return f"cell {cell_hash} is damaged ({reason}): moved to {goal or 'quarantine'}, it runs again"

    def verify(self, hashes: Iterable[str], say: Callable[[str], None]) -> None:
        """Look cheaply whether these cells are whole, as far as they are there; move damaged ones to quarantine.

        Files that nobody touched since they were indexed are taken as they are; of others the checksums are compared,
        but for those of models.

        Args:
            hashes: of cells.
            say: receives a line for each that is damaged.

        Raises:
            FlrBenchError: a damaged cell cannot be moved.
        """
        known, present = self.index.load(), self.present()
        touched = []
        for name in present.intersection(hashes):
            entry = known.get(name)
            if entry is not None and _untouched(f"{self.root}/cells/{name}", entry):
                continue
            with contextlib.suppress(FileNotFoundError):  # another runner has moved it
                found = damage(self.folder(name))
                if found is not None:
                    say(self.quarantine(name, found))
                elif entry is not None:
                    touched.append(name)
        if touched:
            self.index.renew(touched)

    def sound_model(self, cell_hash: str) -> Path:
        """The cell's ``model`` folder, after all of its files were compared with their checksums once.

        Raises:
            DamagedFileError: one differs; the cell was moved to quarantine.
        """
        folder = self.folder(cell_hash)
        if cell_hash not in self._sound and folder.is_dir():
            found = damage(folder, models=True)
            if found is not None:
                raise DamagedFileError(f"{self.quarantine(cell_hash, found)} with the next run")
            self._sound.add(cell_hash)
        return self.model(cell_hash)

    def write_failure(
        self, cell: Cell, error: str, traceback: str, details: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Record that ``cell`` failed, with details such as the limit that it met; returns the record."""
        record = {"hash": cell.hash, "kind": cell.kind, "label": cell.label, "error": error, "traceback": traceback}
        record |= details or {}
        write_json(self.root / "failures" / f"{cell.hash}.json", record)
        return record

    def failures(self, hashes: Iterable[str]) -> dict[str, str]:
        """The recorded one-line errors among these cells, by hash."""
        folder = self.root / "failures"
        recorded = {path.stem for path in folder.glob("*.json")}
        return {name: str(read_json(folder / f"{name}.json").get("error")) for name in hashes if name in recorded}

    def write_suite(self, record: Mapping[str, Any]) -> Path:
        """Record a suite's rows, so that tables need nothing but the store."""
        path = self.suite_path(str(record["suite"]), str(record["profile"]))
        write_json(path, record)
        return path

    def suite_path(self, version: str, profile: str) -> Path:
        """Where the record of a suite lies, or will; every version has its own."""
        return self.root / "suites" / f"{version}-{profile}.json"

    def external_path(self, version: str, profile: str) -> Path:
        """Where the record of rows lies, or will, that others ranked (:mod:`flr_bench.runner.external`)."""
        return self.root / "external" / f"{version}-{profile}.json"

    def search_path(self, version: str, profile: str) -> Path:
        """Where the record of a suite's last ``flr-bench inspect search`` lies, or will."""
        return self.root / "searches" / f"{version}-{profile}.json"

    def entries(self) -> dict[str, Entry]:
        """What the finished cells say of themselves, by hash."""
        return self.index.load()

    def costs(self) -> dict[tuple[str, ...], list[tuple[float, float | None]]]:
        """Seconds and peak memory in bytes of past cells, by :attr:`Cell.cost_key`."""
        costs: dict[tuple[str, ...], list[tuple[float, float | None]]] = {}
        for _, entry in sorted(self.entries().items()):
            if entry.seconds is not None:
                costs.setdefault(entry.cost_key, []).append((entry.seconds, entry.peak_bytes))
        return costs

    def seconds_by_cost(self) -> dict[tuple[str, ...], list[float]]:
        """Seconds that past cells took, by :attr:`Cell.cost_key`."""
        return {key: [seconds for seconds, _ in found] for key, found in self.costs().items()}


def _untouched(folder: str, entry: Entry) -> bool:
    """Whether every file is as it was indexed, going by size and time; a model may have been removed."""
    has_model: bool | None = None
    for name, noted in entry.files.items():
        if name.startswith(f"{MODEL}/"):
            has_model = Path(folder, MODEL).is_dir() if has_model is None else has_model
            if not has_model:
                continue
        try:
            state = os.stat(f"{folder}/{name}")  # noqa: PTH116 - hundreds of thousands of times
        except OSError:
            return False
        if [state.st_size, state.st_mtime_ns] != noted:
            return False
    return True


def _lacks(old: Path, new: Path) -> bool:
    """Whether the new cell has files that the old one has not, such as a model that was removed."""
    return bool({name for name, _ in files_of(new)} - {name for name, _ in files_of(old)})
