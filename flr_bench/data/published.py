"""Preparations that others published: examples with their histories in CSV files, items in ``info.txt``.

LatentR3 and MiniOneRec publish folders of ``train.csv``, ``valid.csv``, ``test.csv`` and ``info.txt``
(each plain or gzip).  A row is an example: a user, a history as list literals, a target.  Everything
here works on columns; the only loop over rows is that over rows whose titles do not agree with
``info.txt`` at first sight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from flr_bench.data.coded import CodedData
from flr_bench.data.layout import ColumnLayout, FileLayout
from flr_bench.data.published_reading import ExampleRows, Info, Layout, header_of, joined, read_examples, read_info
from flr_bench.data.sources import Source
from flr_bench.data.splitting import TRAIN, make_examples, times_of_last_items
from flr_bench.errors import DataError
from flr_bench.interface import Examples, Int32s, Int64s, Interactions

if TYPE_CHECKING:
    import pyarrow as pa


_MILLISECONDS = 100_000_000_000
"""Whole numbers from here on are milliseconds: as seconds they would lie in the year 5138."""

_PARTS = ("train", "valid", "test")


class PublishedSource(Source):
    """A folder with published examples: what reading LatentR3's and MiniOneRec's have in common.

    Where ``train.csv`` is missing, train is rebuilt from the histories of valid and test: the
    interactions in every user's first row that lie strictly before the first valid target's time
    (without times: that row's whole history), with an example for each from a user's second on.

    Class attributes:
        layout: the columns of the files.
        info_columns: what stands on a line of ``info.txt``, separated by tabs; ``title`` may itself
            contain tabs.
    """

    brings_split = True
    layout: Layout
    info_columns: tuple[str, ...]

    def files(self) -> tuple[Path, ...]:
        """``info.txt``, the parts that are there, and further files of the kind."""
        info, valid, test = (self._file(name) for name in ("info.txt", "valid.csv", "test.csv"))
        train = self._optional("train.csv")
        return (info, *((train,) if train else ()), valid, test)

    def attributes(self, info: Info) -> Mapping[str, pa.Array]:
        """Further columns of the catalog, each ``[n]`` text."""
        del info
        return {}

    def read(self) -> CodedData:
        """Read the folder.

        Raises:
            DataError: a file is missing, cannot be read, or contradicts another; one line with file and row.
        """
        import pyarrow as pa

        self.files()  # a missing one is said before the others are read
        info = read_info(self._file("info.txt"), self.info_columns)
        rows: dict[str, ExampleRows] = {}
        for part in _PARTS:
            path = self._optional(f"{part}.csv")
            if path is not None:
                rows[part] = read_examples(path, self.layout, info)
        users, user_keys = _intern_users(rows)
        made = _assemble(rows, users, timed=self.layout.times)
        texts = {name: values for name, values in info.texts.items() if name != "title"}
        keys = pa.array([str(number) for number in info.numbers.tolist()], pa.string())
        columns = {"item": keys, "title": info.texts["title"], **texts, **self.attributes(info)}
        return CodedData(
            users=made.log.users,
            items=made.log.items,
            timestamps=made.log.timestamps,
            user_keys=user_keys,
            catalog=pa.table(columns),
            origin=str(self._path),
            given=made.given,
            given_times=made.last_times,
            remarks=made.remarks,
            counts=made.counts,
            times="seconds" if self.layout.times else "order of rows",
        )

    def tables(self) -> tuple[FileLayout, ...]:
        """``info.txt`` and the parts; what contradicts ``info.txt`` is looked for if that can be read."""
        from flr_bench.data.published_rules import ExampleRule, info_faults

        self.files()
        path = self._file("info.txt")
        try:
            info: Info | None = read_info(path, self.info_columns)
        except DataError:
            info = None
        columns = tuple(
            ColumnLayout(name, "key" if name == "id" else "text", missing=None if name == "semantic_id" else "error")
            for name in self.info_columns
        )
        of_items = FileLayout(
            path,
            "delimited",
            columns,
            delimiter="\t",
            quoting=False,
            header=False,
            unique="id",
            spilling="title",
            rule=info_faults,
        )
        rule = ExampleRule.of(self.layout, info)
        parts = [part for name in _PARTS if (part := self._optional(f"{name}.csv")) is not None]
        return (of_items, *(FileLayout(part, "delimited", self._columns(part), rule=rule) for part in parts))

    def _columns(self, path: Path) -> tuple[ColumnLayout, ...]:
        kinds: dict[str, Literal["key", "time"]] = {"user_id": "key", "timestamp": "time"}
        return tuple(ColumnLayout(name, kinds.get(name, "text")) for name in self.layout.columns(header_of(path), path))

    def _optional(self, name: str) -> Path | None:
        folder = self._folder()
        there = [folder / name, folder / f"{name}.gz"]
        found = [path for path in there if path.is_file()]
        if len(found) > 1:
            raise DataError(f"{folder} holds both {name} and {name}.gz; remove one")
        return found[0] if found else None

    def _file(self, name: str) -> Path:
        found = self._optional(name)
        if found is None:
            raise DataError(f"{self._folder()} lacks {name} (or {name}.gz); give the folder that holds it")
        return found

    def _folder(self) -> Path:
        if self._path is None or not self._path.is_dir():
            raise DataError(f"{self._path} is not a folder; give the one that holds info.txt, valid.csv and test.csv")
        return self._path


@dataclass(frozen=True, eq=False)
class _Made:
    log: Interactions
    given: Mapping[str, Examples]
    last_times: Mapping[str, Int64s]
    remarks: tuple[str, ...]
    counts: Mapping[str, int]


def _assemble(rows: Mapping[str, ExampleRows], users: Mapping[str, Int32s], *, timed: bool) -> _Made:
    """Training interactions and the examples of all parts, out of what the files hold."""
    remarks: list[str] = []
    counts: dict[str, int] = {}
    if timed:
        rows = _in_seconds(rows, remarks)
        later = sum(_later_histories(part) for part in rows.values())
        if later:
            counts["examples_with_history_later_than_target"] = later
            remarks.append(f"{later} examples have an item in their history that is later than their target")
    given: dict[str, Examples] = {}
    last_times = {
        name: part.item_times[part.starts[1:] - 1] for name, part in rows.items() if part.item_times is not None
    }
    if "train" in rows:
        log, places = _log_of_train(rows["train"], users["train"])
        times = rows["train"].times if timed else log.timestamps[places]
        given["train"] = _examples(rows["train"], users["train"], times, first_id=0)
    else:
        log, left_out = _rebuilt_log(rows, users)
        parts = np.zeros(len(log.items), dtype=np.int8)
        train = make_examples(log, parts, TRAIN)
        given["train"] = replace(train, ids=np.arange(len(train), dtype=np.int64))
        last_times |= {"train": times_of_last_items(log, parts, TRAIN)} if timed else {}
        rule = "strictly before the first valid target's time" if timed else "whole, for want of times"
        remarks.append(
            "the folder has no train.csv: train was rebuilt from the histories of valid and test (every user's "
            f"first row, {rule}): {len(log.items):,} interactions, {len(train):,} examples"
        )
        counts |= {"history_items_not_before_valid": left_out} if timed else {}
    if not timed:
        remarks.append("the files have no times: the order of rows stands for the order of time")
    count = len(given["train"])
    for part in _PARTS[1:]:
        behind = len(log.items) + (len(given["valid"]) if part == "test" else 0)
        times = rows[part].times if timed else behind + np.arange(len(rows[part]), dtype=np.int64)
        given[part] = _examples(rows[part], users[part], times, first_id=count)
        count += len(rows[part])
    return _Made(log, given, last_times, tuple(remarks), counts)


def _examples(rows: ExampleRows, users: Int32s, times: Int64s | None, *, first_id: int) -> Examples:
    assert times is not None  # noqa: S101 - for the type checker: the caller chose them
    ids = np.arange(first_id, first_id + len(rows), dtype=np.int64)
    return Examples(ids, users, rows.targets, times, rows.starts[:-1], rows.starts[1:], rows.items)


def _log_of_train(rows: ExampleRows, users: Int32s) -> tuple[Interactions, Int64s]:
    """The interactions that train examples consist of: each user's first history, and all targets.

    Returns:
        The interactions in the order of time (of rows, where there is none), and for each row its
        target's place before they were put in order.
    """
    first = np.zeros(len(rows), dtype=bool)
    first[np.unique(users, return_index=True)[1]] = True
    lengths = np.where(first, np.diff(rows.starts), 0)
    places = np.cumsum(lengths + 1) - 1
    total = int(places[-1]) + 1
    from_history = np.ones(total, dtype=bool)
    from_history[places] = False
    taken, _ = _stretches(rows.starts, np.flatnonzero(first))
    items = np.empty(total, dtype=np.int32)
    items[places], items[from_history] = rows.targets, rows.items[taken]
    times = np.arange(total, dtype=np.int64)
    if rows.times is not None and rows.item_times is not None:
        times[places], times[from_history] = rows.times, rows.item_times[taken]
    log = Interactions(np.repeat(users, lengths + 1), items, times)
    return _in_order(log), places.astype(np.int64)


def _rebuilt_log(rows: Mapping[str, ExampleRows], users: Mapping[str, Int32s]) -> tuple[Interactions, int]:
    """The interactions in every user's first row of valid and test that lie before valid.

    Returns:
        The interactions in the order of time, and how many of those rows' were not before valid.
    """
    parts = [rows["valid"], rows["test"]]
    of_row = np.concatenate([users["valid"], users["test"]])
    offsets = np.concatenate([parts[0].starts, parts[1].starts[1:] + parts[0].starts[-1]])
    firsts = np.sort(np.unique(of_row, return_index=True)[1])
    taken, row = _stretches(offsets, firsts)
    items = np.concatenate([part.items for part in parts])[taken]
    log = Interactions(of_row[firsts][row], items, np.arange(len(items), dtype=np.int64))
    every, cuts = joined([part.item_times for part in parts]), parts[0].times
    if every is None or cuts is None:
        return log, 0
    times = every[taken]
    before = times < cuts.min()
    log = Interactions(log.users[before], items[before], times[before])
    return _in_order(log), int((~before).sum())


def _in_order(log: Interactions) -> Interactions:
    """In the order of time; what has one time stays as it was, so that each user's own order is kept."""
    order = np.argsort(log.timestamps, kind="stable")
    return Interactions(log.users[order], log.items[order], log.timestamps[order])


def _stretches(starts: Int64s, rows: Int64s) -> tuple[Int64s, Int64s]:
    """Positions of all that lies in the given stretches, one after another, and the number of each one's stretch."""
    lengths = starts[rows + 1] - starts[rows]
    of = np.repeat(np.arange(len(rows), dtype=np.int64), lengths)
    within = np.arange(len(of), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts[rows][of] + within, of


def _later_histories(rows: ExampleRows) -> int:
    """How many examples have an item in their history that is later than their target."""
    assert rows.times is not None and rows.item_times is not None  # noqa: S101, PT018 - for the type checker
    latest = np.maximum.reduceat(rows.item_times, rows.starts[:-1])
    return int((latest > rows.times).sum())


def _in_seconds(rows: Mapping[str, ExampleRows], remarks: list[str]) -> Mapping[str, ExampleRows]:
    largest = max(int(part.times.max()) for part in rows.values() if part.times is not None)
    if largest < _MILLISECONDS:
        return rows
    remarks.append("times are in milliseconds in the files, in whole seconds here")
    return {
        name: replace(
            part,
            times=None if part.times is None else part.times // 1000,
            item_times=None if part.item_times is None else part.item_times // 1000,
        )
        for name, part in rows.items()
    }


def _intern_users(rows: Mapping[str, ExampleRows]) -> tuple[dict[str, Int32s], pa.Array]:
    """Users by number, in the order in which they first appear."""
    import pyarrow as pa

    coded = pa.concat_arrays([part.users for part in rows.values()]).dictionary_encode()
    numbers = np.asarray(coded.indices, dtype=np.int32)
    ends = np.cumsum([len(part) for part in rows.values()])
    return dict(zip(rows, np.split(numbers, ends[:-1]), strict=True)), coded.dictionary
