"""Trained models for others to use: a folder that holds all a ranking needs, and what MLflow loads it with.

The folder is put together from the store and the prepared data::

    serving.json                method, parameters, stage, seed, threads, device, rule on seen items
    catalog.json                keys, titles and attributes of all items
    models/model/               the fitted model as the method wrote it (safetensors, JSON)
    models/<role>/              the models that it was fitted on and is loaded with, such as its backbone

No object is pickled: MLflow's pyfunc names this module and the folder, and ``_load_pyfunc`` reads it.

What is served ranks with the method's default rank parameters.  A decoding that chooses something on the
valid examples (``d3``) or mixes in a second model is not served: those examples are not part of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flr_bench.errors import DamagedFileError, FlrBenchError, UnknownNameError, UsageError
from flr_bench.interface import Catalog, Examples, Interactions, RankContext, RankFn, Ranking, Recommender, Split
from flr_bench.registry import RECOMMENDERS
from flr_bench.runner.cell import Machine
from flr_bench.runner.measuring import make_deterministic
from flr_bench.runner.recorded_data import data_of
from flr_bench.runner.store import Store, read_json, write_json
from flr_bench.runner.validation import rank_by_rule

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
DEFAULT_K = 10
Answer = dict[str, list[Any]]
"""``items`` (keys), ``titles`` and ``scores`` of one row, best first."""


# ---------------------------------------------------------------- putting together
def fit_of(store: Store, name: str) -> dict[str, Any]:
    """The record of a fit: of a cell by its hash or the beginning of it; of a ranking, the fit that it ranks with.

    Raises:
        UsageError: no such cell, several, or one that is no model of a method.
    """
    found = sorted(path.parent.name for path in (store.root / "cells").glob(f"{name}*/cell.json")) if name else []
    if len(found) != 1:
        many = f"begins {len(found)} cells" if found else "is no cell"
        raise UsageError(f"'{name}' {many} of {store.root}; give more of a hash that flr-bench plan --json prints")
    record: dict[str, Any] = read_json(store.folder(found[0]) / "cell.json")
    if record["kind"] == "rank":
        return fit_of(store, str(record["inputs"]["fit"]))
    if record["kind"] != "fit":
        raise UsageError(f"'{record['label']}' is a {record['kind']} cell, no model of a method; give a fit or ranking")
    return record


def assemble(store: Store, record: Mapping[str, Any], cache: Path, folder: Path) -> None:
    """Put a model and all that its rankings need into ``folder``; models are linked, not copied.

    Args:
        store: where its cells are.
        record: of the fit (:func:`fit_of`).
        cache: where prepared data lie.
        folder: existing and empty.

    Raises:
        FlrBenchError: a cell or the data it was fitted on are not there.
    """
    inputs = record["inputs"]
    method: type[Recommender] = RECOMMENDERS.get(str(inputs["method"]))
    (folder / "models").mkdir()
    for role, cell in {"model": record["hash"], **{f"needs-{r}": c for r, c in record["requires"].items()}}.items():
        if not store.model(cell).is_dir():
            raise FlrBenchError(f"the model of cell {cell}, which '{record['label']}' needs, is not in {store.root}")
        (folder / "models" / role).symlink_to(store.model(cell).resolve(), target_is_directory=True)
    catalog = data_of(store, inputs["data"], cache).catalog
    write_json(
        folder / "catalog.json",
        {
            "keys": list(catalog.keys),
            "titles": list(catalog.titles),
            "attributes": {name: list(values) for name, values in catalog.attributes.items()},
        },
    )
    write_json(
        folder / "serving.json",
        {
            "format": FORMAT,
            "cell": record["hash"],
            "label": record["label"],
            **{name: inputs[name] for name in ("method", "revision", "params", "stage", "seed", "machine", "examples")},
            "rank_params": method.RankParams().model_dump(mode="json"),
            "requires": sorted(record["requires"]),
        },
    )


# ---------------------------------------------------------------- ranking
@dataclass(eq=False)
class Served:
    """A model that ranks its catalog for histories given as titles or keys.

    Attributes:
        about: content of ``serving.json``.
        catalog: the items.
        recommender: the loaded model.
        device: where it computes.
    """

    about: Mapping[str, Any]
    catalog: Catalog
    recommender: Recommender
    device: str

    @classmethod
    def load(cls, folder: Path) -> Served:
        """Read what :func:`assemble` put together.

        Raises:
            DamagedFileError: a file is missing or of another version.
            UnknownNameError: the method is not installed here.
        """
        try:
            about = read_json(folder / "serving.json")
            listed = read_json(folder / "catalog.json")
            if about["format"] != FORMAT:
                raise ValueError(f"format {about['format']}, expected {FORMAT}")
            attributes = {name: tuple(values) for name, values in listed["attributes"].items()}
            catalog = Catalog(tuple(listed["keys"]), tuple(listed["titles"]), attributes)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(f"{folder} is no model that flr-bench can serve ({error}); log it again") from error
        method: type[Recommender] = RECOMMENDERS.get(str(about["method"]))
        inputs = {role: folder / "models" / f"needs-{role}" for role in about["requires"]}
        device = _device(str(about["machine"]["device"]))
        recommender = method.load(folder / "models" / "model", inputs, device=device)
        return cls(about, catalog, recommender, device)

    @cached_property
    def _item_of_key(self) -> dict[str, int]:
        return {key: item for item, key in enumerate(self.catalog.keys)}

    @cached_property
    def _items_of_title(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for item, title in enumerate(self.catalog.titles):
            found.setdefault(title, []).append(item)
        return found

    def item(self, name: str) -> int:
        """The item of that key or, if there is none, of that title.

        Raises:
            UsageError: there is none, or several items share the title.
        """
        if name in self._item_of_key:
            return self._item_of_key[name]
        items = self._items_of_title.get(name, [])
        if not items:
            raise UnknownNameError(
                "item", name, self._nearby(name), remedy="give titles or keys as the catalog has them"
            )
        if len(items) > 1:
            keys = ", ".join(self.catalog.keys[item] for item in items[:10])
            raise UsageError(f"{len(items)} items are titled '{name}'; give the key of one of them: {keys}")
        return items[0]

    def _nearby(self, name: str) -> Sequence[str]:
        """Titles to look for similar ones in: of a large catalog only those that begin alike."""
        titles = self.catalog.distinct_titles
        alike = [title for title in titles if title[:1].lower() == name[:1].lower()]
        return (alike or titles)[:20_000] if len(titles) > 20 else titles

    def rank(self, histories: Sequence[Sequence[str]], ks: Sequence[int]) -> list[Answer]:
        """The ``ks[i]`` best items after history ``i``, oldest item first; as the benchmark would rank them.

        Raises:
            UsageError: an item is unknown or ambiguous, a history is empty, a ``k`` does not fit the catalog.
        """
        rows = [[self.item(name) for name in history] for history in histories]
        for number, (row, k) in enumerate(zip(rows, ks, strict=True), 1):
            if not row:
                raise UsageError(f"row {number} has an empty history; give at least one title or key")
            if not 1 <= k <= len(self.catalog):
                raise UsageError(f"row {number} asks for k = {k}; the catalog has {len(self.catalog)} items")
        answers: dict[int, Answer] = {}
        for k in sorted(set(ks)):  # a beam search depends on k: each as if it were alone
            chosen = [number for number, asked in enumerate(ks) if asked == k]
            ranking = self._ranked(_examples([rows[number] for number in chosen]), k)
            answers |= {number: self._answer(ranking, place) for place, number in enumerate(chosen)}
        return [answers[number] for number in range(len(rows))]

    def _ranked(self, examples: Examples, k: int) -> Ranking:
        about = self.about
        machine = Machine(self.device, int(about["machine"]["threads"]))
        make_deterministic(machine, int(about["seed"]))
        nobody = np.arange(0, dtype=np.int32)
        context = RankContext(
            seed=int(about["seed"]),
            device=self.device,
            threads=machine.threads,
            inputs={},
            split=Split(
                self.catalog,
                Interactions(nobody, nobody, nobody.astype(np.int64)),
                _examples([]),
                _examples([]),
            ),
            validate=_no_validation,
            progress=_no_progress,
        )
        params = type(self.recommender).RankParams(**about["rank_params"])

        def rank(asked: Examples, count: int) -> Ranking:
            return self.recommender.rank(asked, count, params, context)

        settings = _Rule(**{name: about["examples"][name] for name in ("seen_items", "max_history")})
        read = examples.last(settings.max_history)
        return rank_by_rule(rank, read, k, len(self.catalog), settings)

    def _answer(self, ranking: Ranking, row: int) -> Answer:
        items = [int(item) for item in ranking.items[row]]
        return {
            "items": [self.catalog.keys[item] for item in items],
            "titles": [self.catalog.titles[item] for item in items],
            "scores": [float(score) for score in ranking.scores[row]],
        }

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> list[Answer]:
        """What MLflow calls: rows with ``history`` and, if need be, ``k`` (10 otherwise).

        Args:
            data: a data frame, a list of such rows, or one row.
            params: none are known.

        Raises:
            UsageError: a row cannot be understood.
        """
        if params:
            raise UsageError(f"unknown parameters: {', '.join(sorted(params))}; give history and k in each row")
        rows = _rows(data)
        return self.rank([_history(row) for row in rows], [_k(row) for row in rows])


@dataclass(frozen=True)
class _Rule:
    seen_items: str
    max_history: int


def _load_pyfunc(path: str) -> Served:
    """MLflow's entry (``loader_module``): the folder that the model was logged from."""
    return Served.load(Path(path))


def _device(fitted_on: str) -> str:
    """Where it was fitted, or the CPU where there is no such device."""
    if fitted_on == "cpu":
        return "cpu"
    import torch

    return fitted_on if torch.cuda.is_available() else "cpu"


def _rows(data: Any) -> list[Mapping[str, Any]]:
    if isinstance(data, Mapping):
        return [data]
    if isinstance(data, list):
        return [row if isinstance(row, Mapping) else {"history": row} for row in data]
    frame: pd.DataFrame = data
    if "history" not in frame.columns:
        raise UsageError(f"there is no column 'history', only {', '.join(map(str, frame.columns)) or 'nothing'}")
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict(orient="records")]


def _history(row: Mapping[str, Any]) -> list[str]:
    history = row.get("history")
    if isinstance(history, np.ndarray):
        history = history.tolist()
    if not isinstance(history, list | tuple) or not all(isinstance(name, str) for name in history):
        raise UsageError('each row needs "history": a list of titles or keys as text, oldest first')
    return list(history)


def _k(row: Mapping[str, Any]) -> int:
    k = row.get("k", DEFAULT_K)
    if k is None or k != k:  # a data frame fills gaps with NaN
        return DEFAULT_K
    if isinstance(k, bool) or int(k) != k:
        raise UsageError(f'"k" is {k}; give a whole number of items')
    return int(k)


def _examples(rows: Sequence[Sequence[int]]) -> Examples:
    """Histories whose targets nobody knows."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    stops = np.cumsum(lengths, dtype=np.int64)
    numbers = np.arange(len(rows))
    return Examples(
        ids=numbers.astype(np.int64),
        users=numbers.astype(np.int32),
        targets=np.zeros(len(rows), dtype=np.int32),
        timestamps=np.zeros(len(rows), dtype=np.int64),
        starts=stops - lengths,
        stops=stops,
        items=np.array([item for row in rows for item in row], dtype=np.int32),
    )


def _no_validation(rank: RankFn) -> float:
    del rank
    raise FlrBenchError("a served model has no valid examples to choose anything on")


_no_progress: Callable[[object], None] = lambda progress: None  # noqa: ARG005, E731 - nobody looks
