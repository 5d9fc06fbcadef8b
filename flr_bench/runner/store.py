"""The store: one folder per cell, whole or absent, shared by all suites.

::

    <root>/store.json                        version of the format
    <root>/cells/<hash>/                     cell.json, metrics.json, environment.json, log.txt, model/ and
                                             system.json (:mod:`flr_bench.runner.telemetry`); of a ranking
                                             per_example.parquet, ranking.parquet and, if asked for,
                                             thoughts.parquet (:mod:`flr_bench.runner.traces`)
    <root>/failures/<hash>.json              the last failure of a cell that is not there
    <root>/suites/<name@n>-<profile>.json    rows of a suite and the cells behind them
    <root>/external/<name@n>-<profile>.json  rows that other code ranked and flr-bench score measured
    <root>/checkpoints/<hash>/               where an interrupted fit goes on; removed once its cell is there
    <root>/searches/<name@n>-<profile>.json  rows of the last ``flr-bench inspect search`` on a suite
    <root>/tables/<name@n>-<profile>.json    what the tables were last written from
    <root>/tmp/                              cells being computed; removed when the next run starts
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flr_bench.errors import DamagedFileError, FlrBenchError
from flr_bench.runner.cell import Cell

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
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
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
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "its folder" if path.parent.parent.name == "cells" else "it"  # a cell is whole or not at all
        raise DamagedFileError(f"{path} cannot be read ({error}); remove {what} and run again") from error


class Store:
    """Cells on disk.

    Args:
        root: the folder; created on the first write.

    Raises:
        FlrBenchError: the folder was written by another version of flr-bench.
    """

    def __init__(self, root: Path) -> None:
        """Open the store, or a folder that will become one."""
        self.root = root
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

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for one run, and sweep away what a killed run left behind.

        The lock goes with the process, however it ends.

        Raises:
            FlrBenchError: another run holds it.
        """
        with (self.root / "lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FlrBenchError(
                    f"another run is using the store {self.root}; wait for it or choose another with --runs"
                ) from error
            self.sweep()
            yield

    def sweep(self) -> None:
        """Remove unfinished cells, and checkpoints of finished ones; only while no cell is running."""
        for leftover in (self.root / "tmp").iterdir():
            shutil.rmtree(leftover, ignore_errors=True)
        for folder in (self.root / "checkpoints").glob("*"):
            if folder.name in self:
                shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self, cell: Cell) -> Iterator[Path]:
        """A folder to compute ``cell`` in; it becomes the cell if the block ends without an error.

        An existing cell is replaced only then.  Yields the temporary folder.
        """
        temporary = Path(tempfile.mkdtemp(prefix=f"{cell.hash}-", dir=self.root / "tmp"))
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's are its owner's only; others may read results
        try:
            yield temporary
            write_json(temporary / "cell.json", cell.record())
            final = self.folder(cell.hash)
            if final.exists():
                final.rename(temporary.with_name(f"{temporary.name}-old"))
            temporary.rename(final)
            (self.root / "failures" / f"{cell.hash}.json").unlink(missing_ok=True)
            shutil.rmtree(self.checkpoints(cell.hash), ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(temporary.with_name(f"{temporary.name}-old"), ignore_errors=True)

    def write_failure(self, cell: Cell, error: str, traceback: str) -> dict[str, Any]:
        """Record that ``cell`` failed; returns the record."""
        record = {"hash": cell.hash, "kind": cell.kind, "label": cell.label, "error": error, "traceback": traceback}
        write_json(self.root / "failures" / f"{cell.hash}.json", record)
        return record

    def failures(self, hashes: Iterable[str]) -> dict[str, str]:
        """The recorded one-line errors among these cells, by hash."""
        paths = {name: self.root / "failures" / f"{name}.json" for name in hashes}
        return {name: str(read_json(path).get("error")) for name, path in paths.items() if path.is_file()}

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

    def seconds_by_cost(self) -> dict[tuple[str, ...], list[float]]:
        """Seconds that past cells took, by :attr:`Cell.cost_key`."""
        seconds: dict[tuple[str, ...], list[float]] = {}
        for path in sorted((self.root / "cells").glob("*/cell.json")):
            key = tuple(read_json(path).get("cost_key", ()))
            taken = read_json(path.with_name("metrics.json")).get("seconds")
            if taken is not None:
                seconds.setdefault(key, []).append(float(taken))
        return seconds
