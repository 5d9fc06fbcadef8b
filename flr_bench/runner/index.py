"""What all cells of a store say of themselves, without opening their folders.

::

    <root>/index/<writer>.jsonl     a line per cell that the writer finished, or per environment they ran in

Every process that writes cells appends to a file of its own; many files are joined into one when somebody reads
them.  The folders are the truth: which cells there are is read from ``cells`` itself each time, a cell that no
line tells of is read from its folder, and lines that contradict each other count as none.  So the index may be
removed, cut off in the middle of a line, or written by two at once: all that is lost is time.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from flr_bench.runner.cellfiles import Signature, signature

SEGMENTS_AT_MOST = 16
"""Files above which they are joined."""

FORMAT = 2
_END = "."
_OWN = f',"format":{FORMAT},'
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Entry:
    """What the index knows of a cell.

    Attributes:
        hash: the cell's.
        kind, cost_key: as in its ``cell.json``.
        seconds: how long it took.
        peak_bytes: peak memory, of the process or the device.
        environment: its ``environment.json``.
        files: to tell cheaply whether a file was touched since.
        training: of a fit its method, stage and patience.
    """

    hash: str
    kind: str
    cost_key: tuple[str, ...]
    seconds: float | None
    peak_bytes: float | None
    environment: Json
    files: Signature
    text: str
    """:attr:`figures` as JSON, which few commands need."""
    training: Json = field(default_factory=dict)

    @cached_property
    def figures(self) -> Json:
        """The cell's ``metrics.json`` but for the curves of training."""
        figures: Json = from_json(self.text, cache_strings="keys")
        return figures

    @classmethod
    def of(cls, folder: Path) -> Entry:
        """From the cell's folder.

        Raises:
            OSError, ValueError: a file cannot be read.
        """
        description, figures = _json(folder / "cell.json"), _json(folder / "metrics.json")
        report = figures.get("report")
        if isinstance(report, dict):
            figures["report"] = {name: value for name, value in report.items() if name != "curves"}
        environment = folder / "environment.json"
        key = tuple(str(part) for part in description.get("cost_key") or ())
        ran_in = _json(environment) if environment.is_file() else {}
        cost = (_number(figures.get("seconds")), _number(figures.get("peak_bytes")))
        kind, about = str(description.get("kind")), training_of(description.get("inputs") or {})
        return cls(folder.name, kind, key, *cost, ran_in, signature(folder), _text(figures), about)


def training_of(inputs: Json) -> Json:
    """What trained, and whether patience could end it, from a cell's inputs; empty unless it is a fit."""
    if "stage" not in inputs:
        return {}
    # A cell that tells nothing of its budget counts as patient: silence must not hide an early end.
    patience = (inputs.get("budget") or {}).get("patience", 0)
    return {"method": inputs.get("method"), "stage": inputs["stage"], "patience": patience}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _json(path: Path) -> Json:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content


def present_cells(root: Path) -> set[str]:
    """Names of the finished cells: those whose folders are there."""
    try:
        with os.scandir(root / "cells") as entries:
            return {entry.name for entry in entries if not entry.name.startswith(".")}
    except FileNotFoundError:
        return set()


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Keep Python from searching a million new objects for cycles, again and again, while none of them is let go.

    They live about as long as the process, so that later searches pass them over, too.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()


@dataclass(eq=False)
class Index:
    """The index of a store.

    Args:
        root: the store.
        writer: beginning of the name of the file that this object appends to.
    """

    root: Path
    writer: str = "reader"
    _own: Path | None = field(default=None, init=False)
    _environments_written: set[str] = field(default_factory=set, init=False)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.root / "index"

    def append(self, entries: Iterable[Entry]) -> None:
        """Note these cells; a store that cannot be written goes without."""
        lines = [line for entry in entries for line in self._lines(entry)]
        if not lines:
            return
        with contextlib.suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            if self._own is None:
                self._own = self.folder / f"{self.writer}-{secrets.token_hex(4)}.jsonl"
            # A line that an earlier, interrupted append began ends here.
            with self._own.open("a", encoding="utf-8") as file:
                file.write("\n" + "".join(lines))

    def _lines(self, entry: Entry) -> Iterator[str]:
        environment = _text(entry.environment)
        key = hashlib.sha256(environment.encode()).hexdigest()[:16]
        if key not in self._environments_written:
            self._environments_written.add(key)
            yield f'{{"environment":"{key}","content":{environment}}}\n'
        line = {
            "cell": entry.hash,  # first, so that a reader need not parse lines twice
            "format": FORMAT,
            "kind": entry.kind,
            "cost_key": list(entry.cost_key),
            "seconds": entry.seconds,
            "peak_bytes": entry.peak_bytes,
            "ran_in": key,
            "files": entry.files,
            "training": entry.training,
        }
        # JSON has no tab of its own: the figures are found without reading them, and a line that was cut off is seen.
        yield f"{_text(line)}\t{entry.text}\t{_END}\n"

    @without_collections()
    def load(self) -> dict[str, Entry]:
        """Every finished cell that can be read, by hash; what no file knew is noted for the next time."""
        segments = self._segments()
        known, contradicted = self._read(segments)
        present = present_cells(self.root)
        found = {name: known[name] for name in present & known.keys()}
        fresh = list(self._from_folders(present - known.keys()))
        self.append(fresh)
        found |= {entry.hash: entry for entry in fresh}
        if len(segments) > SEGMENTS_AT_MOST or contradicted & present:
            self._join(found, segments)
        return found

    def renew(self, names: Iterable[str]) -> None:
        """Read these cells anew, after their files were touched."""
        self.append(self._from_folders(names))  # contradicts what was noted before, so that all are joined anew
        self.load()

    def rebuild(self) -> dict[str, Entry]:
        """Read every folder anew and replace all files."""
        segments = self._segments()
        found = {entry.hash: entry for entry in self._from_folders(present_cells(self.root))}
        self._join(found, segments)
        return found

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"))

    def _from_folders(self, names: Iterable[str]) -> Iterator[Entry]:
        for name in sorted(names):
            with contextlib.suppress(OSError, ValueError):  # damaged: whoever needs the cell will say so
                yield Entry.of(self.root / "cells" / name)

    def _join(self, found: Mapping[str, Entry], segments: Iterable[Path]) -> None:
        """Write one file in place of these, which are removed only when it is there."""
        other = Index(self.root, "joined")
        with contextlib.suppress(OSError):
            self.folder.mkdir(exist_ok=True)
            temporary = self.folder / f".joined-{secrets.token_hex(4)}"
            try:
                with temporary.open("w", encoding="utf-8") as file:
                    file.writelines(line for _, entry in sorted(found.items()) for line in other._lines(entry))
                temporary.replace(self.folder / f"joined-{secrets.token_hex(4)}.jsonl")
            finally:
                temporary.unlink(missing_ok=True)
            for segment in segments:
                segment.unlink(missing_ok=True)
            self._own = None
            self._environments_written.clear()

    def _read(self, segments: Iterable[Path]) -> tuple[dict[str, Entry], set[str]]:
        """What the files say where they agree, and the cells on which they do not."""
        lines: dict[str, str] = {}
        environments: dict[str, Json] = {}
        contradicted: set[str] = set()
        for segment in segments:
            with contextlib.suppress(OSError), segment.open(encoding="utf-8", errors="replace") as file:
                for line in file:
                    self._sort_in(line, lines, environments, contradicted)
        entries = (_entry(line, environments) for name, line in lines.items() if name not in contradicted)
        return {entry.hash: entry for entry in entries if entry is not None}, contradicted

    @staticmethod
    def _sort_in(line: str, lines: dict[str, str], environments: dict[str, Json], contradicted: set[str]) -> None:
        text = line.strip()
        if text.startswith('{"cell":"'):
            name, _, rest = text[9:].partition('"')
            if not rest.startswith(_OWN):
                return  # another version's: each keeps lines of its own, else they would undo each other's work
            if lines.setdefault(name, text) != text:
                contradicted.add(name)
        elif text.startswith('{"environment":"'):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                content = json.loads(text)
                environments[content["environment"]] = content["content"]


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def _entry(line: str, environments: Mapping[str, Json]) -> Entry | None:
    """From a line; ``None`` if it is cut off or of another format."""
    head, _, rest = line.partition("\t")
    text, _, end = rest.partition("\t")
    try:
        raw = from_json(head, cache_strings="keys")  # in a third of json's time
        if raw["format"] != FORMAT or end != _END:
            return None
        cost = (raw["seconds"], raw["peak_bytes"])
        environment = environments[raw["ran_in"]]
        key, about = tuple(raw["cost_key"]), raw["training"]
        return Entry(raw["cell"], raw["kind"], key, *cost, environment, raw["files"], text, about)
    except (ValueError, KeyError, TypeError):
        return None
