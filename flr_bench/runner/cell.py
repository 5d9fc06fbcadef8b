"""Cells: pure function calls, each named by a hash of its resolved inputs.

Three kinds.  A *prepare* cell makes something shared by methods and seeds (a pretrained backbone);
a *fit* cell trains one stage of one method; a *rank* cell ranks one selection of test examples with
one trained model and measures it.  A cell holds plain values only: it can be sent to another
process and written as JSON, and two cells with the same inputs are the same cell, whatever suite
or row asks for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from json.encoder import encode_basestring_ascii
from typing import Any, ClassVar

from flr_bench.data.conditions import HistoryChange, TrainShare
from flr_bench.interface import Budget

HASH_LENGTH = 20
"""Hexadecimal digits of a cell's name: 80 bits, no collision to be feared below 10^9 cells."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no white space: equal values give equal text.

    Raises:
        ValueError: the value contains NaN or an infinity, which JSON cannot say.
    """
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


class _Texts:
    """Canonical JSON of cells' inputs, of which those that only differ in seed have most in common.

    What many cells have as the same objects is encoded once: very large suites would spend their time with it.
    """

    MOST = 10_000

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._parts: dict[tuple[int, ...], tuple[tuple[object, ...], list[str]]] = {}
        self._fields: dict[type[Cell], tuple[str, ...]] = {}

    def common_fields(self, kind: type[Cell]) -> tuple[str, ...]:
        """A cell's fields but for its label and those of the inputs that vary: a field that is added counts."""
        if kind not in self._fields:
            names = [field.name for field in fields(kind)]
            self._fields[kind] = tuple(name for name in names if name not in ("label", *kind.VARYING))
        return self._fields[kind]

    def of(self, cell: Cell) -> str:
        """What ``canonical_json(cell.inputs)`` is."""
        common = cell.common
        key = tuple(map(id, common))
        found = self._parts.get(key)
        if found is None:
            if len(self._parts) > self.MOST:
                self._parts.clear()
            # The objects are kept, so that no others get their numbers.
            found = self._parts[key] = (common, self._split(cell))
        parts = found[1]
        return "".join([text for pair in zip(parts, [*cell.varying, ""], strict=True) for text in pair])

    @staticmethod
    def _split(cell: Cell) -> list[str]:
        """The text around the varying inputs: before the first, between them, after the last."""
        parts = ["{"]
        for at, (name, value) in enumerate(sorted(cell.inputs.items())):
            parts[-1] += f"{',' if at else ''}{canonical_json(name)}:"
            if name in cell.VARYING:
                parts.append("")
            else:
                parts[-1] += canonical_json(value)
        parts[-1] += "}"
        return parts


_TEXTS = _Texts()


@dataclass(frozen=True, eq=False)
class DataRef:
    """Prepared data, by what determines it.

    Attributes:
        key: how tables name it: the data set, with the split's name where a suite uses several splits.
        name: the registered source.
        filters, split: the recipe, as JSON values.
        checksum: of sources and recipe, from the prepared data's manifest.
    """

    key: str
    name: str
    filters: Mapping[str, Any]
    split: Mapping[str, Any]
    checksum: str

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What a cell's hash takes from the data: never its display name."""
        return {"checksum": self.checksum, "filters": dict(self.filters), "split": dict(self.split)}


@dataclass(frozen=True)
class Machine:
    """Where a cell runs, as far as results depend on it.

    Attributes:
        device: type of torch device, ``"cpu"`` or ``"cuda"``.
        threads: CPU threads; float sums depend on their number.
        devices: processes that compute the cell together, each with a device and so many threads of its own;
            sums depend on their number too.
    """

    device: str
    threads: int
    devices: int = 1

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """What enters a cell's hash; one device goes without saying."""
        return {name: value for name, value in asdict(self).items() if name != "devices" or value != 1}

    @property
    def cost_key(self) -> str:
        """Machines with the same key are expected to be about as fast."""
        return self.device if self.devices == 1 else f"{self.devices} {self.device}"


@dataclass(frozen=True)
class ExampleSettings:
    """Which examples a method sees, the same for every method of a suite.

    Attributes:
        max_history: items of a history at most, the last ones.
        train_examples: train examples, drawn by the cell's seed; ``None`` takes all.
        valid_examples: valid examples, the same for every seed; ``None`` takes all.
        seen_items: ``"allowed"`` or ``"excluded"``: whether items of the history may be recommended.
    """

    max_history: int
    train_examples: int | None
    valid_examples: int | None
    seen_items: str


@dataclass(frozen=True, eq=False)
class Cell:
    """What all kinds share.

    Attributes:
        label: human text for progress and logs; no part of the hash.
        requires: the cells this one builds on, by role.
    """

    kind: ClassVar[str]
    VARYING: ClassVar[tuple[str, ...]] = ("requires",)
    """Inputs, in alphabetical order, in which cells that differ in their seed alone differ."""
    label: str
    requires: Mapping[str, Cell] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """Name of the cell: the beginning of the sha256 of its inputs as canonical JSON."""
        return hashlib.sha256(_TEXTS.of(self).encode()).hexdigest()[:HASH_LENGTH]

    @property
    def varying(self) -> tuple[str, ...]:
        """Canonical JSON of the inputs :attr:`VARYING`, in their order."""
        return (self._text_of_required,)

    @property
    def common(self) -> tuple[object, ...]:
        """What all other inputs are made from, as objects that cells with other seeds may have, too."""
        return (type(self), *[getattr(self, name) for name in _TEXTS.common_fields(type(self))])

    @property
    def _text_of_required(self) -> str:
        if not self.requires:
            return "{}"
        hashes = [f'{encode_basestring_ascii(role)}:"{name}"' for role, name in self.required_hashes.items()]
        return f"{{{','.join(hashes)}}}"

    @property
    def own_inputs(self) -> dict[str, Any]:
        """The inputs besides kind and required cells, as JSON values."""
        raise NotImplementedError

    @property
    def inputs(self) -> dict[str, Any]:
        """All that the result depends on, as JSON values."""
        return {"kind": self.kind, **self.own_inputs, "requires": self.required_hashes}

    @property
    def required_hashes(self) -> dict[str, str]:
        """Hashes of the required cells, by role."""
        return {role: cell.hash for role, cell in sorted(self.requires.items())}

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The cells that must be in the store before this one runs."""
        return tuple(self.requires.values())

    @property
    def cost_key(self) -> tuple[str, ...]:
        """Cells with the same key are expected to take about as long (used by time estimates only)."""
        raise NotImplementedError

    @property
    def own_data(self) -> DataRef | None:
        """The data among the cell's own inputs; its names are no part of the hash, but of the record."""
        found: DataRef | None = getattr(self, "data", None)
        return found

    def record(self) -> dict[str, Any]:
        """Content of ``cell.json``."""
        return {
            "format": 1,
            "kind": self.kind,
            "hash": self.hash,
            "label": self.label,
            "inputs": self.inputs,
            "requires": self.required_hashes,
            "cost_key": list(self.cost_key),
            **({} if self.own_data is None else {"data": {"key": self.own_data.key, "name": self.own_data.name}}),
        }


def _given(**values: DataRef | TrainShare | HistoryChange | None) -> dict[str, Any]:
    """Inputs that enter a hash only where something was asked for: cells without them stay as they were."""
    return {name: value.inputs for name, value in values.items() if value is not None}


@dataclass(frozen=True, eq=False, kw_only=True)
class PrepareCell(Cell):
    """Something made once per data set and split, whatever the seed.

    Attributes:
        data: what it is made from.
        max_history: as in :class:`ExampleSettings`.
        what: the registered preparation.
        revision: its declared revision.
        params: its parameters, complete, as JSON values.
        fingerprint: checksum of files outside the store that it depends on.
        machine: where it runs.
        train_share: as in :class:`FitCell`.
    """

    kind: ClassVar[str] = "prepare"
    data: DataRef
    max_history: int
    what: str
    revision: int
    params: Mapping[str, Any]
    fingerprint: str
    machine: Machine
    train_share: TrainShare | None = None

    @property
    def own_inputs(self) -> dict[str, Any]:
        """See :attr:`Cell.own_inputs`."""
        return {
            "data": self.data.inputs,
            "max_history": self.max_history,
            "what": self.what,
            "revision": self.revision,
            "params": self.params,
            "fingerprint": self.fingerprint,
            "machine": self.machine.inputs,
            **_given(train_share=self.train_share),
        }

    @property
    def cost_key(self) -> tuple[str, ...]:
        """See :attr:`Cell.cost_key`."""
        return (self.kind, self.what, self.machine.cost_key)


@dataclass(frozen=True, eq=False, kw_only=True)
class FitCell(Cell):
    """One trained stage of one method.

    Attributes:
        data, examples: what it learns from.
        method, revision: the registered recommender and its declared revision.
        params: the fit parameters that the stage depends on, as JSON values.
        stage: one of the method's stages.
        seed: every random choice derives from it.
        machine: where it runs.
        budget: epochs, patience and what is watched.
        train_share: the share of the train users that it learns from; ``None`` for all, who go without saying.
        stop_below: value on valid by epoch below which the fit is ended (:mod:`flr_bench.runner.pruning`); like the
            label no part of the hash, since a fit that is ended leaves no cell.
    """

    kind: ClassVar[str] = "fit"
    VARYING: ClassVar[tuple[str, ...]] = ("requires", "seed")
    data: DataRef
    examples: ExampleSettings
    method: str
    revision: int
    params: Mapping[str, Any]
    stage: str
    seed: int
    machine: Machine
    budget: Budget
    train_share: TrainShare | None = None
    stop_below: Mapping[int, float] | None = None

    @property
    def own_inputs(self) -> dict[str, Any]:
        """See :attr:`Cell.own_inputs`."""
        return {
            "data": self.data.inputs,
            "examples": asdict(self.examples),
            "method": self.method,
            "revision": self.revision,
            "params": self.params,
            "stage": self.stage,
            "seed": self.seed,
            "machine": self.machine.inputs,
            "budget": asdict(self.budget),
            **_given(train_share=self.train_share),
        }

    @property
    def varying(self) -> tuple[str, ...]:
        """See :attr:`Cell.varying`."""
        return (self._text_of_required, str(self.seed))

    @property
    def cost_key(self) -> tuple[str, ...]:
        """See :attr:`Cell.cost_key`."""
        share = () if self.train_share is None else (f"{self.train_share.share:g}",)
        return (self.kind, self.method, self.stage, self.machine.cost_key, str(self.examples.train_examples), *share)


@dataclass(frozen=True, eq=False, kw_only=True)
class RankCell(Cell):
    """One ranking of one selection of test examples by one trained model, with its metrics.

    Attributes:
        fit: the trained model; part of :attr:`needs`.
        params: rank parameters, complete, as JSON values.
        test_examples: how many test examples, spread over all test users; ``None`` takes all.
        ks: cut-offs of the metrics; the ranking is as long as the largest.
        data: the data that is ranked, where it is not the model's own.
        history_change: how histories are changed for the model; its metrics know nothing of it.
    """

    kind: ClassVar[str] = "rank"
    VARYING: ClassVar[tuple[str, ...]] = ("fit", "requires")
    fit: FitCell
    params: Mapping[str, Any]
    test_examples: int | None
    ks: tuple[int, ...]
    data: DataRef | None = None
    history_change: HistoryChange | None = None

    @property
    def own_inputs(self) -> dict[str, Any]:
        """See :attr:`Cell.own_inputs`."""
        return {
            "fit": self.fit.hash,
            "params": self.params,
            "test_examples": self.test_examples,
            "k": list(self.ks),
            "seen_items": self.fit.examples.seen_items,
            **_given(data=self.data, history_change=self.history_change),
        }

    @property
    def varying(self) -> tuple[str, ...]:
        """See :attr:`Cell.varying`."""
        return (f'"{self.fit.hash}"', self._text_of_required)

    @property
    def common(self) -> tuple[object, ...]:
        """See :attr:`Cell.common`; one input is the fit's."""
        return (*super().common, self.fit.examples.seen_items)

    @property
    def ranked_data(self) -> DataRef:
        """The data whose test examples are ranked."""
        return self.data or self.fit.data

    @property
    def needs(self) -> tuple[Cell, ...]:
        """The model and whatever else the ranking requires."""
        return (self.fit, *self.fit.requires.values(), *self.requires.values())

    @property
    def cost_key(self) -> tuple[str, ...]:
        """See :attr:`Cell.cost_key`."""
        decoding = " ".join(str(self.params[name]) for name in ("decoding", "search", "beams") if name in self.params)
        return (self.kind, self.fit.method, decoding, self.fit.machine.cost_key, str(self.test_examples))

    def record(self) -> dict[str, Any]:
        """Content of ``cell.json``; the model is required under the role ``fit``."""
        record = super().record()
        record["requires"] = {"fit": self.fit.hash, **self.required_hashes}
        return record


def machine_of(cell: Cell) -> Machine:
    """Where the cell runs: a ranking where its model was trained."""
    if isinstance(cell, RankCell):
        return cell.fit.machine
    if isinstance(cell, FitCell | PrepareCell):
        return cell.machine
    raise TypeError(f"a {cell.kind} cell names no machine of its own")
