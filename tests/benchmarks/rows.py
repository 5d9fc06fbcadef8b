"""The benchmark's rows: which task on which shape, and how one is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch

from flr_bench.lm.training import Updater
from tests.benchmarks import language_model as ways
from tests.benchmarks.measuring import floating_point_operations, peak_memory, take_turns
from tests.benchmarks.workloads import Shape, Workload

NAMES = ("sft", "grpo", "ranking", "ranking_thought", "exact")

PART_TITLES = 320
"""Titles on which the plain exact way's memory and operations are taken."""

EXACT_EXAMPLES = 1
"""Examples for which the plain way scores the whole catalog; its time and work are scaled to the batch."""


@dataclass(frozen=True)
class Spec:
    """One row to measure; without ``plain`` the engine alone, where the plain way would take too long."""

    name: str
    shape: Shape
    plain: bool = True


@dataclass
class Row:
    """What was measured.

    Attributes:
        name: the task.
        engine_s, plain_s: median seconds of a batch; ``None`` where the plain way was not run.
        ratio: how many times faster the engine is.
        peak_ratio: the engine's peak memory beyond weights over the plain way's.
        agree: whether results are equal within ``tolerance``; ``None`` where there was nothing to compare with.
        device: ``cpu`` or the GPU's name.
        shape: sizes of model and task.
        difference: largest relative difference of results.
        tolerance: what is allowed.
        compared: what was compared, in words.
        engine_bytes, plain_bytes: peak memory beyond weights.
        engine_flop, plain_flop: floating-point operations of matrix products and attention.
        flop_ratio: how many times less arithmetic the engine does: the ratio if time went with arithmetic.
        tokens_per_s: prompt and target tokens (ranking: prompt tokens) that the engine answers for per second.
        peak_share: the engine's operations per second over the best matrix product's.
        repeats: runs of the engine.
        note: what else one must know.
    """

    name: str
    engine_s: float
    plain_s: float | None
    ratio: float | None
    peak_ratio: float | None
    agree: bool | None
    device: str
    shape: dict[str, object]
    difference: float | None = None
    tolerance: float | None = None
    compared: str = ""
    engine_bytes: int = 0
    plain_bytes: int | None = None
    engine_flop: int = 0
    plain_flop: int | None = None
    flop_ratio: float | None = None
    tokens_per_s: float = 0.0
    peak_share: float = 0.0
    repeats: int = 0
    note: str = ""
    surroundings: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Effort:
    """How long to measure a row: ``repeats`` turns at most, none begun after ``seconds``."""

    repeats: int = 5
    seconds: float = 25.0
    matmul_flops: float = 1.0


def reference(shape: Shape) -> list[Spec]:
    """The five tasks on one shape."""
    return [Spec(name, shape) for name in NAMES]


def real(shape: Shape) -> list[Spec]:
    """The five tasks on real prompts and titles."""
    return [Spec(name, replace(shape, data="ml-100k", width=96, layers=3, heads=4)) for name in NAMES]


def wide(shape: Shape) -> list[Spec]:
    """Wider models."""
    specs = []
    for width in (256, 512):
        wider = replace(shape, width=width, heads=width // 64, batch=4)
        specs += [Spec(name, wider) for name in ("sft", "grpo", "ranking")]
    return specs


def growth(shape: Shape) -> list[Spec]:
    """The engine's cost over catalog size, beams, group size and prompt length."""
    specs = []
    for titles in (1_000, 10_000, 100_000):
        specs.append(Spec("ranking", replace(shape, titles=titles), plain=False))
    for titles in (1_000, 10_000):  # few examples: the cost of each is the same
        specs.append(Spec("exact", replace(shape, titles=titles, batch=min(2, shape.batch)), plain=False))
    specs += [Spec("ranking", replace(shape, beams=beams), plain=False) for beams in (5, 20, 50)]
    specs += [Spec("grpo", replace(shape, group=group), plain=False) for group in (2, 4, 16, 32)]
    for prompt in (50, 100, 400):
        specs += [Spec(name, replace(shape, prompt=prompt), plain=False) for name in ("sft", "grpo", "ranking")]
    return specs


GROUPS: dict[str, Callable[[Shape], list[Spec]]] = {
    "reference": reference,
    "real": real,
    "wide": wide,
    "growth": growth,
}
"""All rows, in the order in which they are measured."""


@dataclass(frozen=True)
class Task:
    """Engine and plain way of one row, ready to be called.

    Attributes:
        engine, plain: the two ways.
        compare: whether what they returned agrees.
        checked: the plain way as the comparison needs it, if not ``plain``.
        plain_share: share of the batch's work that ``plain`` does.
        parts: what memory and operations are taken of, engine and plain way, where the whole takes too long.
        part_shares: shares of the batch's work that ``parts`` do.
    """

    engine: Callable[[], Any]
    plain: Callable[[], Any]
    compare: Callable[[Any, Any], ways.Agreement]
    checked: Callable[[], Any] | None = None
    plain_share: float = 1.0
    parts: tuple[Callable[[], Any], Callable[[], Any]] | None = None
    part_shares: tuple[float, float] = (1.0, 1.0)


def task(name: str, work: Workload) -> Task:
    """The task called ``name`` on ``work``; sets which weights are trained.

    The optimiser's step size is 0: it does its work, and the weights stay the same for the next turn.
    """
    if name in ("sft", "grpo"):
        return _training(name, work)
    work.model.requires_grad_(False)
    exactly = work.place.dtype == torch.float32
    compare = partial(ways.compare_rankings, exactly=exactly)
    if name == "exact":
        share, some = EXACT_EXAMPLES / work.shape.batch, min(PART_TITLES, work.shape.titles)
        return Task(
            partial(ways.engine_exact, work),
            partial(ways.plain_exact, work, EXACT_EXAMPLES),
            compare,
            plain_share=share,
            parts=(
                partial(ways.engine_exact, work, EXACT_EXAMPLES),
                partial(ways.plain_exact, work, EXACT_EXAMPLES, some),
            ),
            part_shares=(share, share * some / work.shape.titles),
        )
    thought = name == "ranking_thought"
    plain = partial(ways.plain_ranking, work, thought=thought)

    def compare_beams(engine: ways.Top, plain: ways.Top) -> ways.Agreement:
        return ways.compare_beams(engine, ways.engine_ranking_as_published(work, thought=thought), plain, exactly)

    # Scores are kept for the comparison only: they would count as memory.
    return Task(
        partial(ways.engine_ranking, work, thought=thought), plain, compare_beams, checked=partial(plain, scores=True)
    )


def _training(name: str, work: Workload) -> Task:
    whole = name == "sft"
    work.model.trains_backbone = whole
    work.model.requires_grad_(True)
    work.model.language_model.requires_grad_(whole)
    work.model.train(whole)
    updater = Updater([(work.model.parameters(), 0.0)], weight_decay=0.0, warmup=0, total=1, max_norm=1e30)
    engine, plain = (ways.engine_sft, ways.plain_sft) if whole else (ways.engine_grpo, ways.plain_grpo)
    compare = partial(ways.compare_steps, exactly=work.place.dtype == torch.float32)
    return Task(partial(engine, work, updater), partial(plain, work, updater), compare)


def cost(way: Callable[[], object], work: Workload) -> tuple[int, int]:
    """Peak memory beyond weights and floating-point operations, from one run."""
    operations: list[int] = []
    peak = peak_memory(lambda: operations.append(floating_point_operations(way)), work.place)
    return peak, operations[0]


def measure(spec: Spec, work: Workload, effort: Effort, device: str) -> Row:
    """Check, time in turns, then memory and arithmetic in runs of their own."""
    todo = task(spec.name, work)
    plain = todo.plain if spec.plain else None
    agreement, note = None, ""
    if plain is not None:
        try:
            agreement = todo.compare(todo.engine(), (todo.checked or plain)())
        except torch.OutOfMemoryError:
            plain, note = None, "the plain way ran out of memory"
            torch.cuda.empty_cache()
    if plain is None:
        todo.engine()  # warms up
    timings = take_turns(todo.engine, plain, work.place, repeats=effort.repeats, seconds=effort.seconds)
    share = todo.plain_share
    plain_s = None if timings.plain_s is None else timings.plain_s / share
    if plain_s is not None and share < 1:
        note = (
            f"the plain way ran for {EXACT_EXAMPLES} of {work.shape.batch} examples, its time is scaled; memory and "
            f"arithmetic of both ways were taken on {EXACT_EXAMPLES}"
        )
    parts, part_shares = todo.parts or (todo.engine, todo.plain), todo.part_shares
    engine_bytes, counted = cost(parts[0], work)
    engine_flop = round(counted / part_shares[0])
    plain_bytes = plain_flop = None
    if plain is not None:
        plain_bytes, counted = cost(parts[1], work)
        plain_flop = round(counted / part_shares[1])
    tokens = int(work.batch.lengths.sum())
    if spec.name in ("sft", "grpo"):
        tokens += int(work.batch.target_mask.sum()) * (work.shape.group if spec.name == "grpo" else 1)
    return Row(
        name=spec.name,
        engine_s=timings.engine_s,
        plain_s=plain_s,
        ratio=None if plain_s is None else plain_s / timings.engine_s,
        peak_ratio=None if plain_bytes is None else engine_bytes / plain_bytes,
        agree=None if agreement is None else agreement.agree,
        device=device,
        shape=work.describe(),
        difference=None if agreement is None else agreement.difference,
        tolerance=None if agreement is None else agreement.tolerance,
        compared="" if agreement is None else agreement.what,
        engine_bytes=engine_bytes,
        plain_bytes=plain_bytes,
        engine_flop=engine_flop,
        plain_flop=plain_flop,
        flop_ratio=None if plain_flop is None else plain_flop / engine_flop,
        tokens_per_s=tokens / timings.engine_s,
        peak_share=engine_flop / timings.engine_s / effort.matmul_flops,
        repeats=len(timings.engine),
        note=note,
    )


def grouped(specs: list[Spec]) -> Iterator[tuple[Shape, list[Spec]]]:
    """The rows in order, neighbours of one shape together, so that it is built once."""
    together: list[Spec] = []
    for spec in specs:
        if together and together[-1].shape != spec.shape:
            yield together[-1].shape, together
            together = []
        together.append(spec)
    if together:
        yield together[-1].shape, together
