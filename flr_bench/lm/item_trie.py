"""The catalog's titles as a token trie in flat tensors.

A node is a prefix of token ids; node 0, the root, is the empty one.  Nodes are numbered depth
first (children by token id), and so are the titles ("leaves"): the titles below a node are an
interval of leaves, and an assistant's probability mass below it is the difference of two
cumulative sums, for any number of nodes at once.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flr_bench.errors import DamagedFileError, DataError

Ints = npt.NDArray[np.int64]

FORMAT = 1
"""Number of the stored form; raised whenever a field is added or means something else."""

CACHED_FROM = 100_000
"""Catalogs with fewer distinct titles are built anew each time, which takes less than a second."""

_log = logging.getLogger("flr_bench.lm")


@dataclass(frozen=True, eq=False)
class ItemTrie:
    """A token trie over distinct titles; all tensors are int64.

    A title may be a prefix of another: then its last node is terminal and has children.

    Attributes:
        child_start: ``[nodes + 1]``; the children of a node are ``child_start[node]:child_start[node + 1]``.
        child_token: ``[nodes - 1]`` token that leads to each child.
        child_node: ``[nodes - 1]`` the child's node.
        token: ``[nodes]`` token that leads to the node (-1 for the root).
        depth: ``[nodes]`` number of tokens from the root.
        terminal: ``[nodes]`` the title that ends at the node, -1 for none.
        leaf_low, leaf_high: ``[nodes]`` the titles below a node (its own included) are the leaves
            ``leaf_low <= leaf < leaf_high``.
        longest: ``[nodes]`` length in tokens of the longest title below the node.
        title_of_leaf, leaf_of_title: ``[titles]`` each other's inverse.
        title_length: ``[titles]`` number of tokens.
        title_start, title_token: title ``i`` is ``title_token[title_start[i]:title_start[i + 1]]``.
        item_of_leaf_order: ``[items]`` items sorted by leaf, then by id.
        item_start: ``[titles + 1]`` offsets into ``item_of_leaf_order``, by leaf.
    """

    child_start: Tensor
    child_token: Tensor
    child_node: Tensor
    token: Tensor
    depth: Tensor
    terminal: Tensor
    leaf_low: Tensor
    leaf_high: Tensor
    longest: Tensor
    title_of_leaf: Tensor
    leaf_of_title: Tensor
    title_length: Tensor
    title_start: Tensor
    title_token: Tensor
    item_of_leaf_order: Tensor
    item_start: Tensor

    @property
    def nodes(self) -> int:
        """Number of nodes, the root included."""
        return len(self.token)

    @property
    def titles(self) -> int:
        """Number of distinct titles."""
        return len(self.title_of_leaf)

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.item_of_leaf_order)

    @property
    def items_per_title(self) -> Tensor:
        """How many items share each title, ``[titles]`` int64."""
        return (self.item_start[1:] - self.item_start[:-1])[self.leaf_of_title]

    def to(self, device: str | torch.device) -> ItemTrie:
        """The same trie on ``device``."""
        return ItemTrie(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    @classmethod
    def build(
        cls, tokens: npt.NDArray[np.integer[Any]], offsets: Ints, title_of_item: npt.NDArray[np.integer[Any]]
    ) -> Self:
        """Build the trie with vector operations only: time and memory grow with the number of tokens.

        Args:
            tokens: flat token ids of all distinct titles, ends included.
            offsets: ``[titles + 1]``; title ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
            title_of_item: ``[items]`` index of each item's title.

        Raises:
            DataError: a title is without tokens or without items, or two titles have the same tokens.
        """
        flat: Ints = np.asarray(tokens, dtype=np.int64)
        offsets = np.asarray(offsets, dtype=np.int64)
        lengths = np.diff(offsets)
        _check(lengths, title_of_item)
        order = lexicographic_order(flat, offsets[:-1], lengths)
        starts, lengths = offsets[:-1][order], lengths[order]
        common = common_with_previous(flat, starts, lengths)
        if (same := np.flatnonzero(common[1:] == lengths[1:])).size and (lengths[same] == lengths[same + 1]).any():
            row = same[lengths[same] == lengths[same + 1]][0]
            raise DataError(f"titles {order[row]} and {order[row + 1]} have the same tokens; titles must be distinct")
        nodes = _number_nodes(flat, starts, lengths, common, order)
        leaf_of_title = np.empty_like(order)
        leaf_of_title[order] = np.arange(len(order))
        leaf_of_item = leaf_of_title[np.asarray(title_of_item, dtype=np.int64)]
        item_start = np.concatenate([[0], np.cumsum(np.bincount(leaf_of_item, minlength=len(order)))])
        columns = nodes | {
            "title_of_leaf": order,
            "leaf_of_title": leaf_of_title,
            "title_length": lengths[leaf_of_title],
            "title_start": offsets,
            "title_token": flat,
            "item_of_leaf_order": np.argsort(leaf_of_item, kind="stable"),
            "item_start": item_start,
        }
        return cls(**{name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in columns.items()})

    @classmethod
    def cached(
        cls,
        tokens: npt.NDArray[np.integer[Any]],
        offsets: Ints,
        title_of_item: npt.NDArray[np.integer[Any]],
        cache: Path | None,
    ) -> Self:
        """The trie from ``cache/tries``, or built and stored there; small catalogs are always built.

        A file that is damaged or holds another trie is replaced, with one warning.

        Args:
            tokens: as in :meth:`build`.
            offsets: as in :meth:`build`.
            title_of_item: as in :meth:`build`.
            cache: the cache folder; ``None`` stores nothing.

        Raises:
            DataError: as in :meth:`build`.
        """
        if cache is None or len(offsets) - 1 < CACHED_FROM:
            return cls.build(tokens, offsets, title_of_item)
        from safetensors import SafetensorError

        checksum = source_checksum(tokens, offsets, title_of_item)
        path = cache / "tries" / f"{checksum}.safetensors"
        if path.is_file():
            try:
                return cls.load(path, checksum)
            except DamagedFileError as error:
                _log.warning("%s; it is built anew", error)
        trie = cls.build(tokens, offsets, title_of_item)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            trie.save(path, checksum)
        except (OSError, SafetensorError) as error:  # also a full disk, as safetensors tells it
            _log.warning("the item trie cannot be stored as '%s' (%s); it is built anew next time", path, error)
        return trie

    def save(self, path: Path, checksum: str) -> None:
        """Write the trie, whole or not at all, as int32 wherever a field's values allow.

        Args:
            path: a safetensors file in an existing folder.
            checksum: :func:`source_checksum` of what the trie was built from.

        Raises:
            OSError, SafetensorError: the file cannot be written.
        """
        from safetensors.torch import save_file

        columns = {field.name: _narrow(getattr(self, field.name).cpu()).contiguous() for field in fields(self)}
        metadata = {"format": str(FORMAT), "source": checksum, "content": _content_checksum(columns)}
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".trie-") as folder:
            temporary = Path(folder) / path.name
            save_file(columns, temporary, metadata)
            temporary.replace(path)

    @classmethod
    def load(cls, path: Path, checksum: str) -> Self:
        """Read a stored trie, on the CPU.

        Args:
            path: what :meth:`save` wrote.
            checksum: :func:`source_checksum` of what it must have been built from.

        Raises:
            DamagedFileError: the file is missing, damaged, of another format, or of other titles.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise DamagedFileError(f"the stored item trie '{path}' is missing or damaged") from error
        if metadata.get("format") != str(FORMAT) or set(columns) != {field.name for field in fields(cls)}:
            raise DamagedFileError(f"'{path}' is no item trie of format {FORMAT}")
        if metadata.get("source") != checksum:
            raise DamagedFileError(f"the stored item trie '{path}' is one of other titles")
        if metadata.get("content") != _content_checksum(columns):
            raise DamagedFileError(f"the stored item trie '{path}' is damaged")
        return cls(**{name: value.long() for name, value in columns.items()})

    def leaf_masses(self, item_log_probabilities: Tensor) -> Tensor:
        """Cumulative probability over leaves: the mass below a node is ``c[leaf_high] - c[leaf_low]``.

        Args:
            item_log_probabilities: ``[B, items]`` logarithm of a distribution over the items.

        Returns:
            ``[B, titles + 1]`` float64, from 0 to about 1, never decreasing.
        """
        mass = item_log_probabilities.double().exp()[:, self.item_of_leaf_order].cumsum(1)
        return torch.nn.functional.pad(mass, (1, 0))[:, self.item_start]

    def best_items(self, item_log_probabilities: Tensor) -> Tensor:
        """The largest log-probability of an item of each title, ``[B, titles]`` float64.

        Args:
            item_log_probabilities: ``[B, items]``.
        """
        values = item_log_probabilities.double()
        title = self.title_of_leaf.repeat_interleave(self.item_start[1:] - self.item_start[:-1])
        best = values.new_full((len(values), self.titles), -torch.inf)
        index = title.expand(len(values), -1)
        return best.scatter_reduce(1, index, values[:, self.item_of_leaf_order], "amax")


def source_checksum(
    tokens: npt.NDArray[np.integer[Any]], offsets: Ints, title_of_item: npt.NDArray[np.integer[Any]]
) -> str:
    """Checksum of what a trie is built from (arguments as in :meth:`ItemTrie.build`), 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for values in (tokens, offsets, title_of_item):
        column = np.ascontiguousarray(values, dtype="<i8")
        digest.update(len(column).to_bytes(8, "little"))
        digest.update(column.data)
    return digest.hexdigest()


def _content_checksum(columns: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(f"{name} {columns[name].dtype} {tuple(columns[name].shape)}".encode())
        digest.update(columns[name].numpy().data)
    return digest.hexdigest()


def _narrow(values: Tensor) -> Tensor:
    """As int32 if all values fit."""
    limits = torch.iinfo(torch.int32)
    fits = not len(values) or (int(values.min()) >= limits.min and int(values.max()) <= limits.max)
    return values.to(torch.int32) if fits else values


def _check(lengths: Ints, title_of_item: npt.NDArray[np.integer[Any]]) -> None:
    if len(lengths) == 0:
        raise DataError("there are no titles to build a trie from; the catalog is empty")
    if (lengths <= 0).any():
        raise DataError(f"title {int(np.argmin(lengths))} has no tokens; give it a title or filter the item out")
    counts = np.bincount(title_of_item, minlength=len(lengths))
    if len(counts) > len(lengths) or (counts == 0).any():
        raise DataError("title_of_item must name every title at least once, and no other")


def lexicographic_order(tokens: Ints, starts: Ints, lengths: Ints) -> Ints:
    """Titles in lexicographic order of their tokens, a prefix before its extensions: radix sort from the last column.

    At each column only the titles that reach it take part, so the work is that of the tokens.
    """
    by_length = np.argsort(-lengths, kind="stable")
    reach = np.searchsorted(-lengths[by_length], -np.arange(lengths.max()), side="left")  # titles longer than column
    active = np.empty(0, dtype=np.int64)
    for column in range(int(lengths.max()) - 1, -1, -1):
        arriving = by_length[len(active) : reach[column]]
        active = np.concatenate([arriving, active])
        active = active[np.argsort(tokens[starts[active] + column], kind="stable")]
    return active


def common_with_previous(tokens: Ints, starts: Ints, lengths: Ints) -> Ints:
    """Length of the common prefix of each title with the one before it in sorted order."""
    common = np.zeros(len(starts), dtype=np.int64)
    shorter = np.minimum(lengths[1:], lengths[:-1])
    rows = np.arange(1, len(starts))
    column = 0
    while rows.size:
        rows = rows[shorter[rows - 1] > column]
        rows = rows[tokens[starts[rows] + column] == tokens[starts[rows - 1] + column]]
        column += 1
        common[rows] = column
    return common


def _number_nodes(tokens: Ints, starts: Ints, lengths: Ints, common: Ints, title: Ints) -> dict[str, Ints]:
    """Number nodes depth first: each title in turn adds the nodes beyond its common prefix with the one before."""
    added = lengths - common
    last = np.cumsum(added)  # node in which each title ends; the root is node 0
    leaf = np.repeat(np.arange(len(starts)), added)
    depth = np.arange(1, last[-1] + 1) - np.repeat(last - added, added) + common[leaf]
    nodes = int(last[-1]) + 1
    depth = np.concatenate([[0], depth])
    leaf_low = np.concatenate([[0], leaf])
    token = np.full(nodes, -1, dtype=np.int64)
    token[1:] = tokens[starts[leaf] + depth[1:] - 1]
    terminal = np.full(nodes, -1, dtype=np.int64)
    terminal[last] = title
    below = (terminal >= 0).astype(np.int64)
    longest = np.where(terminal >= 0, depth, 0)
    parent = np.full(nodes, -1, dtype=np.int64)
    levels = np.split(np.argsort(depth, kind="stable"), np.cumsum(np.bincount(depth))[:-1])
    for upper, lower in zip(levels[-2::-1], levels[:0:-1], strict=True):
        parent[lower] = upper[np.searchsorted(upper, lower) - 1]  # the last shallower node before it
        first = np.flatnonzero(np.diff(parent[lower], prepend=-1))
        below[parent[lower[first]]] += np.add.reduceat(below[lower], first)
        grown = np.maximum.reduceat(longest[lower], first)
        longest[parent[lower[first]]] = np.maximum(longest[parent[lower[first]]], grown)
    child_node = np.argsort(parent[1:], kind="stable") + 1
    return {
        "child_start": np.concatenate([[0], np.cumsum(np.bincount(parent[1:], minlength=nodes))]),
        "child_token": token[child_node],
        "child_node": child_node,
        "token": token,
        "depth": depth,
        "terminal": terminal,
        "leaf_low": leaf_low,
        "leaf_high": leaf_low + below,
        "longest": longest,
    }
