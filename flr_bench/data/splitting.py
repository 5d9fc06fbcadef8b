"""The order of interactions, the split, and the examples made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from flr_bench.data.filtering import hash_keys, mix
from flr_bench.data.instants import Instant, seconds, shown
from flr_bench.data.sorting import stable_order
from flr_bench.interface import Examples, Interactions, Params

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Int8s = npt.NDArray[np.int8]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]

TRAIN, VALID, TEST = 0, 1, 2
PARTS = ("train", "valid", "test")
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)


class SplitParams(Params):
    """How interactions become train, valid and test examples.

    ``global_temporal`` cuts the interactions of all users at two points of one common order of
    time, so that nothing in train is later than anything in valid or test.  ``leave_one_out`` keeps
    each user's last interaction for test and the one before for valid; train then contains
    interactions of some users that are later than test targets of others.  ``user_holdout`` keeps
    whole users for valid and for test, none of whose interactions is trained on; their histories are
    their own earlier items.  ``given`` takes the examples that a source brings itself.
    """

    name: Literal["global_temporal", "leave_one_out", "user_holdout", "given"] = Field(
        default="global_temporal", description="which rule cuts the interactions"
    )
    cut: Literal["interactions", "examples"] = Field(
        default="interactions",
        description="what is counted to find the cuts (global_temporal): interactions, before examples are made, or "
        "examples (shares rounded down)",
    )
    fractions: tuple[float, float, float] = Field(
        default=DEFAULT_FRACTIONS,
        description="shares of train, valid and test, each above 0, 1 in all (global_temporal; user_holdout: of users)",
    )
    tie_seed: int = Field(default=0, ge=0, description="seed of the hash that orders interactions of one timestamp")
    dates: tuple[Instant, Instant] | None = Field(
        default=None,
        description="where valid and where test begin, ISO 8601 in UTC, in place of shares (global_temporal)",
    )
    ties: Literal["hash", "source"] = Field(
        default="hash",
        description="order of interactions of one timestamp: a seeded hash, or the source's (users in the order of "
        "first appearance, each one's rows as they stand)",
    )
    targets: Literal["all", "last", "first", "random"] = Field(
        default="all", description="which of a user's valid, and which of its test examples count"
    )
    seed: int = Field(default=0, ge=0, description="seed of the choice of users (user_holdout) and of random targets")

    @model_validator(mode="after")
    def _check_fractions(self) -> Self:
        if min(self.fractions) <= 0 or abs(sum(self.fractions) - 1) > 1e-9:
            raise ValueError(f"fractions must each be above 0 and add up to 1, not {list(self.fractions)}")
        if self.dates is not None and seconds(self.dates[0]) >= seconds(self.dates[1]):
            raise ValueError(f"valid must begin before test, not on {shown(self.dates[0])} and {shown(self.dates[1])}")
        changed = {name for name, about in type(self).model_fields.items() if getattr(self, name) != about.default}
        for name in sorted(changed & self._ignored()):
            raise ValueError(f"{self._label()} takes no {name}; leave {'them' if name[-1] == 's' else 'it'} out")
        return self

    @model_serializer(mode="wrap")
    def _what_matters(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The hashes of results made before there were other rules stay as they are.
        dumped: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        later = {name for name in _LATER_FIELDS if getattr(self, name) == fields[name].default}
        first = not (_LATER_FIELDS - later) and self.name in ("global_temporal", "leave_one_out")
        drop = later if first else later | self._ignored()
        return {name: value for name, value in dumped.items() if name not in drop}

    def recipe(self) -> dict[str, Any]:
        """The settings that matter under this rule, as JSON values."""
        dumped = self.model_dump(mode="json")
        return {name: value for name, value in dumped.items() if name not in self._ignored()}

    def _ignored(self) -> set[str]:
        """The fields that change nothing beside the others."""
        out = set(_IGNORED[self.name])
        if self.dates is not None:
            out |= {"cut", "fractions"}
        if self.ties == "source":
            out.add("tie_seed")
        if self.name != "user_holdout" and self.targets != "random":
            out.add("seed")
        return out

    def _label(self) -> str:
        settings = [f"targets: {self.targets}"] if self.name == "given" or self.targets != "all" else []
        settings += ["ties: source"] if self.ties == "source" else []
        settings += ["dates"] if self.dates is not None else []
        return " with ".join([self.name, ", ".join(settings)]) if settings else self.name


_LATER_FIELDS = {"dates", "ties", "targets", "seed"}
_IGNORED: Mapping[str, set[str]] = {
    "global_temporal": set(),
    "leave_one_out": {"fractions", "cut", "dates", "targets"},  # each user has one target in each part
    "user_holdout": {"cut", "dates"},
    "given": {"fractions", "cut", "dates", "ties", "tie_seed"},
}


def order_in_time(
    user_keys: Sequence[str], item_keys: Sequence[str], users: Ints, items: Ints, timestamps: Ints, *, seed: int
) -> Int64s:
    """Positions of the interactions in the order of time, ties broken by a seeded hash.

    Many data sets have ties (in ML-100K 76 % of the rows share user and timestamp with another).
    Breaking them by item id or by the order of the file leaks how the file was made: an item's id
    then tells what comes next.  The hash of (user key, item key, seed) knows neither.

    Args:
        user_keys: key of each user.
        item_keys: key of each item.
        users: ``[n]`` index into ``user_keys``.
        items: ``[n]`` index into ``item_keys``.
        timestamps: ``[n]`` seconds.
        seed: seed of the hash.

    Returns:
        ``[n]`` int64 permutation; independent of the order of the rows as long as no two are equal
        in user, item and timestamp.
    """
    order = stable_order(timestamps)
    in_time = timestamps[order]
    same = in_time[1:] == in_time[:-1]
    tied = np.zeros(len(order), dtype=np.bool_)
    tied[1:] |= same
    tied[:-1] |= same
    places = np.flatnonzero(tied)
    if len(places):
        rows = order[places]
        instant = np.cumsum(np.concatenate([[True], ~same[places[1:] - 1]]))
        hashes = _hashes_of(user_keys, users[rows], f"user {seed}"), _hashes_of(item_keys, items[rows], f"item {seed}")
        order[places] = rows[_order_by_hash(instant, users[rows], items[rows], *hashes)]
    return order


def _hashes_of(keys: Sequence[str], wanted: Ints, salt: str) -> UInt64s:
    """``[keys]`` uint64, the hash of each key that is wanted, 0 for the others."""
    used = np.flatnonzero(np.bincount(wanted, minlength=len(keys)))
    out = np.zeros(len(keys), dtype=np.uint64)
    out[used] = hash_keys([keys[index] for index in used.tolist()], salt)
    return out


def _order_by_hash(instant: Int64s, users: Ints, items: Ints, of_user: UInt64s, of_item: UInt64s) -> Int64s:
    """Positions by instant, mixed hash, user's hash, item's hash, in the order of what decides."""
    both = mix(of_user[users] + mix(of_item)[items])
    # Instant and the hash's upper bits fit into one number; the rest decides where these meet.
    bits = np.uint64(int(instant[-1]).bit_length())
    packed = (instant.astype(np.uint64) << (np.uint64(64) - bits)) | (both >> bits)
    order = np.argsort(packed)
    packed = packed[order]
    same = packed[1:] == packed[:-1]
    meets = np.zeros(len(order), dtype=np.bool_)
    meets[1:] |= same
    meets[:-1] |= same
    places = np.flatnonzero(meets)
    rows = np.sort(order[places])
    columns = of_item[items[rows]], of_user[users[rows]], both[rows], instant[rows]
    order[places] = rows[np.lexsort(columns)]
    return order


def order_of_source(users: Ints, timestamps: Ints) -> Int64s:
    """Positions of the interactions in the order of time, ties as the source has them.

    Of one timestamp, users follow in the order in which they first appear, and each one's rows as
    they stand: what a stable sort gives of examples that were listed user by user.

    Args:
        users: ``[n]`` user of each row, from 0, in the source's order.
        timestamps: ``[n]`` seconds.

    Returns:
        ``[n]`` int64 permutation.
    """
    rank = np.zeros(int(users.max(initial=0)) + 1, dtype=np.int64)
    rank[users[::-1]] = np.arange(len(users))[::-1]  # the last that is written is the user's first row
    return np.lexsort((rank[users], timestamps))


def assign_parts(log: Interactions, params: SplitParams, user_keys: Sequence[str] = ()) -> Int8s:
    """Which part each interaction belongs to.

    Args:
        log: the interactions in the order of time.
        params: the rule; not ``given``.
        user_keys: key of each user, for ``user_holdout`` alone.

    Returns:
        ``[n]`` int8 of ``TRAIN``, ``VALID``, ``TEST``; never decreasing along a user's interactions.
    """
    if params.name == "leave_one_out":
        return _leave_one_out(log.users)
    if params.name == "user_holdout":
        return _hold_out_users(user_keys, params)[log.users]
    if params.dates is not None:
        return _between(np.array([seconds(date) for date in params.dates]), log.timestamps)
    if params.cut == "examples":
        return _between(_cuts_by_examples(log.users, params.fractions), np.arange(len(log)))
    return _between(_cuts(params.fractions, len(log)), np.arange(len(log)))


def make_examples(interactions: Interactions, parts: Int8s, part: int) -> Examples:
    """The examples whose targets are the interactions of one part.

    Every interaction from a user's second on is a target; its history is all that the user did
    before it in the order of time, whatever part that belongs to.  Nothing of later parts is in the
    returned arrays.

    Args:
        interactions: all interactions in the order of time.
        parts: ``[n]`` int8 as from :func:`assign_parts`.
        part: ``TRAIN``, ``VALID`` or ``TEST``.

    Returns:
        Examples in the order of time; an example's id is its target's place in that order.
    """
    known = _first_or_all(parts <= part)
    users, items = interactions.users[known], interactions.items[known]
    by_user = stable_order(users)
    place = np.empty(len(users), dtype=np.int64)
    place[by_user] = np.arange(len(users))
    items = items[by_user]
    del by_user  # at full size each column of positions is a quarter of a gigabyte
    counts = np.bincount(users, minlength=1)
    first = np.cumsum(counts) - counts
    rows = np.flatnonzero((parts[known] == part) & (place > first[users]))
    stops, starts = place[rows], first[users[rows]]
    ids = rows if isinstance(known, slice) else known[rows]
    return Examples(
        ids=ids,
        users=interactions.users[ids],
        targets=interactions.items[ids],
        timestamps=interactions.timestamps[ids],
        starts=starts,
        stops=stops,
        items=items,
    )


def _first_or_all(chosen: Bools) -> slice | Int64s:
    """The chosen positions: as a slice, which copies nothing, where they are the first ones."""
    number = int(np.count_nonzero(chosen))
    return slice(number) if chosen[:number].all() else np.flatnonzero(chosen)


def choose_targets(examples: Examples, params: SplitParams, user_keys: Sequence[str], part: str) -> Examples:
    """One example per user, by the rule ``targets``.

    Args:
        examples: the examples of one part in the order of time.
        params: ``all``: every one; ``first`` and ``last`` in time; ``random``: by a hash of user key,
            part and seed, so that neither the order of users nor other users change a user's choice.
        user_keys: key of each user.
        part: the part's name.

    Returns:
        The chosen examples in the order of time; histories are shared.
    """
    if params.targets == "all" or not len(examples):
        return examples
    by_user = np.argsort(examples.users, kind="stable")
    users, first, counts = np.unique(examples.users[by_user], return_index=True, return_counts=True)
    if params.targets == "first":
        offset = np.zeros_like(counts)
    elif params.targets == "last":
        offset = counts - 1
    else:
        hashes = hash_keys([user_keys[user] for user in users.tolist()], f"target {part} {params.seed}")
        offset = (hashes % counts.astype(np.uint64)).astype(np.int64)
    return examples.take(np.sort(by_user[first + offset]))


def spread_over_users(users: Ints, n: int | None, *, seed: int) -> Int64s:
    """Choose ``n`` examples so that all users have as equal a share as their examples allow.

    Users take turns in a random order, each giving one of its examples at random, until ``n`` are
    chosen.  So a smaller choice is part of a larger one of the same seed.

    Args:
        users: ``[m]`` user of each example.
        n: how many; ``None`` or at least ``m`` means all.
        seed: seed of both random orders.

    Returns:
        Positions of the chosen examples, ascending.
    """
    if n is None or n >= len(users):
        return np.arange(len(users), dtype=np.int64)
    generator = np.random.default_rng(seed)
    distinct, codes = np.unique(users, return_inverse=True)
    user_turn = generator.permutation(len(distinct))[codes]
    shuffled = generator.permutation(len(users))
    grouped = shuffled[np.argsort(codes[shuffled], kind="stable")]
    round_of = np.empty(len(users), dtype=np.int64)
    round_of[grouped] = np.arange(len(users)) - np.searchsorted(codes[grouped], codes[grouped], side="left")
    chosen = np.lexsort((user_turn, round_of))[:n]
    return np.sort(chosen).astype(np.int64)


def _leave_one_out(users: Ints) -> Int8s:
    """Last to test, last but one to valid; of two interactions the second goes to test, a single one to train."""
    by_user = np.argsort(users, kind="stable")
    ordered = users[by_user]
    first = np.searchsorted(ordered, ordered, side="left")
    after = np.searchsorted(ordered, ordered, side="right")
    place = np.arange(len(users))
    count, left = after - first, after - 1 - place
    part = np.full(len(users), TRAIN, dtype=np.int8)
    part[(left == 1) & (count >= 3)] = VALID
    part[(left == 0) & (count >= 2)] = TEST
    out = np.empty_like(part)
    out[by_user] = part
    return out


def _cuts(fractions: Sequence[float], n: int) -> Int64s:
    cuts: Int64s = np.rint(np.cumsum(fractions[:2]) * n).astype(np.int64)
    return cuts


def _between(cuts: Int64s, values: Ints) -> Int8s:
    """The part of each value: valid from the first cut on, test from the second."""
    return np.searchsorted(cuts, values, side="right").astype(np.int8)


def _cuts_by_examples(users: Ints, fractions: Sequence[float]) -> Int64s:
    """Places of the first valid and the first test target, shares of the examples rounded down.

    A user's first interaction makes no example; it belongs to the part of its place in time.
    """
    first = np.full(int(users.max(initial=0)) + 1, -1, dtype=np.int64)
    first[users[::-1]] = np.arange(len(users))[::-1]  # the last that is written is the user's first row
    targets = np.flatnonzero(np.arange(len(users)) != first[users])
    shares = fractions[0], round(fractions[0] + fractions[1], 12)
    counts = [int(len(targets) * share) for share in shares]
    return np.array([targets[count] if count < len(targets) else len(users) for count in counts], dtype=np.int64)


def _hold_out_users(user_keys: Sequence[str], params: SplitParams) -> Int8s:
    """The part of each user, by the order of a seeded hash of their keys."""
    order = np.argsort(hash_keys(user_keys, f"holdout {params.seed}"), kind="stable")
    out = np.empty(len(user_keys), dtype=np.int8)
    out[order] = _between(_cuts(params.fractions, len(user_keys)), np.arange(len(user_keys)))
    return out
