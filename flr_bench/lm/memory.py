"""Running out of memory: what does not fit is split in two, and the work goes on.

Passes over rows of examples run through :meth:`MemoryGuard.each`.  Where one exhausts the memory, what
can be spared is given back, its rows are halved and run as two passes; rows as many as failed once are
halved from then on without another try.  That is said once for each parameter that would prevent it, and
counted: a batch that was split gives the same results to rounding, not to the bit (and figures that are
themselves taken over a batch become means over its parts).  A single example that does not fit ends the
work with one clear line.

Only failures to allocate are treated so; every other error passes through untouched.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from flr_bench.errors import FlrBenchError

log = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
W = TypeVar("W", bound=Sized)
T = TypeVar("T")

#: How allocators that have no exception of their own say that they failed (lower case).
SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "defaultcpuallocator",
    "out of memory",
    "std::bad_alloc",
    "alloc_failed",
)


class OutOfMemory(FlrBenchError):
    """A single example does not fit into memory."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out: torch's on any device, Python's or numpy's."""
    # numpy's own is a MemoryError, torch.cuda's is torch.OutOfMemoryError
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def halved_rows(rows: Ints) -> tuple[Ints, Ints]:
    """Rows in two, the first not the smaller."""
    middle = -(-len(rows) // 2)
    return rows[:middle], rows[middle:]


@dataclass(frozen=True)
class Passes(Generic[W]):
    """One kind of pass, and how to split it.

    Attributes:
        what: for the message, for example ``"training"``.
        lower: the parameter that a user would lower to avoid splits.
        longest: tokens of the longest example of a piece of work.
        halve: splits a piece of at least two examples into two that are not empty.
    """

    what: str
    lower: str
    longest: Callable[[W], int]
    halve: Callable[[W], tuple[W, W]]


def row_passes(what: str, lower: str, lengths: npt.NDArray[np.integer[Any]]) -> Passes[Ints]:
    """Passes over rows of examples with ``lengths`` tokens."""
    return Passes(what, lower, lambda rows: int(lengths[rows].max(initial=0)), halved_rows)


class MemoryGuard:
    """Runs passes and splits those that exhaust the memory; one for each model in memory.

    Args:
        release: gives back what can be spared (kept encodings, say) before a failed pass is tried again.

    Attributes:
        batches_split: how many times a piece of work was halved.
    """

    def __init__(self, release: Callable[[], None] | None = None) -> None:
        """Nothing has failed yet."""
        self.batches_split = 0
        self._release = release
        self._failed: dict[tuple[str, str], int] = {}
        self._told: set[str] = set()

    def state(self) -> dict[str, Any]:
        """What has failed, as JSON values for a checkpoint: the same pieces of work are split after it."""
        failed = [[what, lower, size] for (what, lower), size in self._failed.items()]
        return {"batches_split": self.batches_split, "failed": failed}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier :meth:`state`."""
        self.batches_split = int(state["batches_split"])
        self._failed = {(what, lower): size for what, lower, size in state["failed"]}
        self._told = {lower for _, lower in self._failed}

    def each(
        self,
        works: Iterable[W],
        run: Callable[[W], T],
        passes: Passes[W],
        *,
        start_over: Callable[[], None] | None = None,
    ) -> list[T]:
        """Run every piece of work, split where memory does not suffice.

        Args:
            works: pieces of work, of at least one example each; ``len`` is their number of examples.
            run: does one piece and leaves nothing behind where it fails, unless ``start_over`` is given.
            passes: what they are and how they are split.
            start_over: undoes all that was run so far (partial gradients, say).  With it, a failure starts
                the whole sequence again, the failed piece halved; without, the sequence goes on there.

        Returns:
            The results in order, one for each piece that was run in the end.

        Raises:
            OutOfMemory: one example alone does not fit.
        """
        waiting = deque(works)
        done: list[W] = []
        results: list[T] = []
        alone: W | None = None
        while waiting:
            work = waiting.popleft()
            if self._known_too_large(work, passes):
                waiting.extendleft(reversed(self._halves(work, passes)))
            elif _attempt(run, work, results):
                done.append(work)
            elif work is alone:
                raise _alone(work, passes)
            else:
                # A single example is tried once more, with everything freed that can be.
                alone = work if len(work) < 2 else None
                self._free()
                waiting.extendleft(reversed(self._noted_halves(work, passes) if alone is None else [work]))
                if start_over is not None:
                    start_over()
                    waiting.extendleft(reversed(done))
                    done, results = [], []
        return results

    def _known_too_large(self, work: W, passes: Passes[W]) -> bool:
        size = self._failed.get((passes.what, passes.lower))
        return size is not None and len(work) > 1 and len(work) * passes.longest(work) >= size

    def _halves(self, work: W, passes: Passes[W]) -> tuple[W, W]:
        self.batches_split += 1
        return passes.halve(work)

    def _noted_halves(self, work: W, passes: Passes[W]) -> tuple[W, W]:
        """The halves of what failed; remembers its size and says so once."""
        key, longest = (passes.what, passes.lower), passes.longest(work)
        self._failed[key] = min(self._failed.get(key, len(work) * longest), len(work) * longest)
        if passes.lower not in self._told:
            self._told.add(passes.lower)
            log.warning(
                "out of memory in %s on %d examples of up to %d tokens: such batches are split from here on, which "
                "changes results by rounding; lower %s to avoid it",
                passes.what,
                len(work),
                longest,
                passes.lower,
            )
        return self._halves(work, passes)

    def _free(self) -> None:
        if self._release is not None:
            self._release()
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without CUDA


class WholePasses(MemoryGuard):
    """Splits nothing: a process of a sharded model that ran a pass twice would leave the others waiting."""

    def each(
        self,
        works: Iterable[W],
        run: Callable[[W], T],
        passes: Passes[W],
        *,
        start_over: Callable[[], None] | None = None,
    ) -> list[T]:
        """Run every piece of work once, as it is; see :meth:`MemoryGuard.each`."""
        del passes, start_over
        return [run(work) for work in works]


def _attempt(run: Callable[[W], T], work: W, results: list[T]) -> bool:
    """Run one piece and keep its result; false where memory ran out, and nothing of the failure is held on to."""
    try:
        results.append(run(work))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def _alone(work: W, passes: Passes[W]) -> OutOfMemory:
    return OutOfMemory(
        f"out of memory in {passes.what} on a single example of {passes.longest(work)} tokens; shorten prompts with "
        "max_history or max_prompt_tokens, choose a smaller backbone, or a device with more free memory"
    )
