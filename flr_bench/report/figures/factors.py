"""What factors do: attention over one user's history, gates over users, agreement of factors with each other."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from flr_bench.report.figures.style import INK, headline
from flr_bench.report.figures.words import figure_title, sentences
from flr_bench.report.reading import SuiteView
from flr_bench.report.render import number
from flr_bench.report.thoughts import (
    Floats,
    Quantity,
    Thinker,
    catalog_of,
    is_untrained,
    main_thinker,
    thinkers,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from flr_bench.interface import Catalog

TITLE_WIDTH = 34
PROMPT = "(the prompt's other words)"
NO_TITLES = "Titles are not at hand: the prepared data are not in the cache beside the store."


# ---------------------------------------------------------------- one history
def attention_figure(view: SuiteView, data: str) -> Figure | None:
    """Attention of each factor over the history of one test example, step by step, in percent.

    The example is the first one (by number) with the longest history, whatever its ranking was.
    """
    from matplotlib.figure import Figure

    found = _attention(view, data)
    if found is None:
        return None
    thinker, example, matrix, items = found
    catalog = catalog_of(view, data)
    labels = [*(_title(catalog, item) for item in items), PROMPT]
    steps, _, factors = matrix.shape
    figure = Figure(figsize=(3.4 + steps * (0.4 + 0.42 * factors), 1.5 + 0.28 * len(labels)), layout="constrained")
    grid = figure.subplots(1, steps, squeeze=False, sharey=True)
    for step, axes in enumerate(grid.flat):
        heat(
            axes, matrix[step], 0.0, float(matrix.max()), "Greys", [f"{100 * value:.0f}" for value in matrix[step].flat]
        )
        axes.set_xticks(np.arange(factors) + 0.5, [str(k + 1) for k in range(factors)])
        axes.set_xlabel("factor")
        axes.set_title(f"step {step + 1}", fontsize="medium")
    grid.flat[0].set_yticks(np.arange(len(labels)) + 0.5, labels)
    user = f"{thinker.row.label}, seed {thinker.seed}: attention in percent over the history of user {example.user[0]}"
    chosen = f"test example {example.example[0]}, the first with the longest history; oldest item on top."
    headline(figure, figure_title(view, data), f"{user}, {chosen}", "" if catalog else NO_TITLES)
    return figure


def attention_says(view: SuiteView, data: str) -> str:
    """Where each factor looks most in the last step."""
    found = _attention(view, data)
    if found is None:
        return ""
    thinker, example, matrix, items = found
    catalog = catalog_of(view, data)
    labels = [*(_title(catalog, item) for item in items), PROMPT]
    last = matrix[-1]
    tops = [f"factor {k + 1}: {labels[int(c.argmax())]} ({100 * c.max():.0f} %)" for k, c in enumerate(last.T)]
    return sentences(
        f"Attention of each factor of {thinker.row.label} (seed {thinker.seed}) over the {len(items)} items in the "
        f"history of user {example.user[0]} on {data}; most in the last step: {'; '.join(tops)}.",
        "" if catalog else NO_TITLES,
    )


def _attention(view: SuiteView, data: str) -> tuple[Thinker, Quantity, Floats, list[int]] | None:
    """The model, the example's rows, ``[steps, items + 1, factors]`` (the last line is the rest), and the items."""
    found = thinkers(view, data)
    if not found:
        return None
    thinker = main_thinker(found)
    attention, rest = thinker.read("attention"), thinker.read("template_attention")
    if attention is None or rest is None:
        return None
    lengths = np.bincount(attention.example[(attention.step == 0) & (attention.factor == 0)])
    example = int(lengths.argmax())
    own, left = attention.where(attention.example == example), rest.where(rest.example == example)
    places = sorted(set(own.position.tolist()))
    shape = (int(own.step.max()) + 1, len(places) + 1, int(own.factor.max()) + 1)
    matrix = np.zeros(shape)
    matrix[own.step, np.searchsorted(places, own.position), own.factor] = own.value
    matrix[left.step, -1, left.factor] = left.value
    first = own.where((own.step == 0) & (own.factor == 0))
    order = np.argsort(first.position)
    return thinker, own, matrix, first.item[order].tolist()


def _title(catalog: Catalog | None, item: int) -> str:
    return f"item {item}" if catalog is None else textwrap.shorten(catalog.titles[item], TITLE_WIDTH, placeholder="…")


def heat(axes: Axes, values: Floats, low: float, high: float, colours: str, texts: Sequence[str]) -> None:
    """A matrix with its numbers written in, dark on light and light on dark."""
    import seaborn as sns

    sns.heatmap(
        values, vmin=low, vmax=high, cmap=colours, cbar=False, ax=axes, linewidths=0.5, linecolor="0.9",
        annot=np.array(texts, dtype=object).reshape(values.shape), fmt="", annot_kws={"fontsize": "small"},
    )  # fmt: skip
    axes.collections[0].set_edgecolor("0.9")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0, rotation=0)


# ---------------------------------------------------------------- gates
def gates_figure(view: SuiteView, data: str) -> Figure | None:
    """How the users' gates spread over the factors in the last step: a panel per trained model, a box per factor."""
    from matplotlib.figure import Figure

    found = [(thinker, gates) for thinker in thinkers(view, data) if (gates := _gates(thinker)) is not None]
    if not found:
        return None
    figure = Figure(figsize=(3.0 * len(found) + 0.8, 3.6), layout="constrained")
    grid = figure.subplots(1, len(found), squeeze=False, sharey=True)
    for axes, (thinker, gates) in zip(grid.flat, found, strict=True):
        factors = gates.shape[1]
        look = {"color": INK, "lw": 1.0}
        axes.boxplot(
            gates, whis=(5, 95), showfliers=False, widths=0.55, medianprops={**look, "lw": 2.0}, boxprops=look,
            whiskerprops=look, capprops=look,
        )  # fmt: skip
        axes.axhline(1 / factors, color="0.45", linestyle="--", lw=1.0)
        axes.set_xticks(range(1, factors + 1), [str(k + 1) for k in range(factors)])
        axes.set_xlabel("factor")
        axes.set_title(_model_title(thinker), loc="left", fontsize="medium")
        axes.grid(visible=False, axis="x")
    grid.flat[0].set_ylabel("gate in the last step")
    grid.flat[0].set_ylim(-0.03, 1.03)
    words = "Over users (mean of a user's test examples): median, quartiles, whiskers at 5 and 95 %; dashed: all alike."
    headline(figure, figure_title(view, data), words)
    return figure


def gates_say(view: SuiteView, data: str) -> str:
    """The median gate of each factor, and how many users each factor leads for."""
    parts = []
    for thinker in thinkers(view, data):
        gates = _gates(thinker)
        if gates is not None:
            leads = np.bincount(gates.argmax(axis=1), minlength=gates.shape[1])
            shown = ", ".join(f"{m:.2f} ({n})" for m, n in zip(np.median(gates, axis=0), leads, strict=True))
            parts.append(f"{thinker.row.label}: {shown} of {len(gates)} users")
    return (
        f"Gates of the factors over users on {data} in the last step, the median and in brackets the number of users "
        f"whose largest gate it is. {'; '.join(parts)}."
    )


def _gates(thinker: Thinker) -> Floats | None:
    """``[users, factors]`` mean gate of each user in the last step."""
    gate = thinker.read("gate")
    if gate is None:
        return None
    last = gate.last_step()
    users, place = np.unique(last.user, return_inverse=True)
    sums, counts = (np.zeros((len(users), int(last.factor.max()) + 1)) for _ in range(2))
    np.add.at(sums, (place, last.factor), last.value)
    np.add.at(counts, (place, last.factor), 1)
    means: Floats = sums / counts
    return means


def _model_title(thinker: Thinker) -> str:
    trained = "before training" if is_untrained(thinker) else f"after {'+'.join(thinker.row.stages)}"
    return f"{thinker.row.method}, {trained}"


# ---------------------------------------------------------------- cosines
def cosines_figure(view: SuiteView, data: str) -> Figure | None:
    """Mean cosine of every pair of factors in the last step, before and after training as far as models were kept."""
    from matplotlib.figure import Figure

    found = [(thinker, matrix) for thinker in thinkers(view, data) if (matrix := _cosines(thinker)) is not None]
    if not found:
        return None
    factors = max(len(matrix) for _, matrix in found)
    figure = Figure(figsize=(len(found) * (0.6 + 0.5 * factors) + 0.8, 1.5 + 0.5 * factors), layout="constrained")
    grid = figure.subplots(1, len(found), squeeze=False)
    for axes, (thinker, matrix) in zip(grid.flat, found, strict=True):
        texts = [_signed(value) if np.isfinite(value) else "" for value in matrix.flat]
        heat(axes, matrix, -1.0, 1.0, "vlag", texts)
        ticks, labels = np.arange(len(matrix)) + 0.5, [str(k + 1) for k in range(len(matrix))]
        axes.set_xticks(ticks, labels)
        axes.set_yticks(ticks, labels)
        axes.set_aspect("equal")
        axes.set_title(_model_title(thinker), loc="left", fontsize="medium")
        axes.set_xlabel("factor")
    grid.flat[0].set_ylabel("factor")
    headline(figure, figure_title(view, data), _cosine_words(found))
    return figure


def cosines_say(view: SuiteView, data: str) -> str:
    """The mean absolute cosine of each model."""
    found = [(thinker, matrix) for thinker in thinkers(view, data) if (matrix := _cosines(thinker)) is not None]
    parts = [f"{_model_title(one)} {np.nanmean(np.abs(matrix)):.2f}" for one, matrix in found]
    return sentences(
        f"Cosines of the factors on {data} in the last step, means over test examples of one seed; mean size over "
        f"pairs: {'; '.join(parts)}.",
        _cosine_words(found),
    )


def _cosine_words(found: Sequence[tuple[Thinker, Floats]]) -> str:
    before = any(is_untrained(thinker) for thinker, _ in found)
    return (
        "" if before else "The suite keeps no thoughts of an untrained model: there is no matrix from before training."
    )


def _cosines(thinker: Thinker) -> Floats | None:
    """``[K, K]`` mean over examples, above the diagonal; NaN elsewhere."""
    cosine = thinker.read("factor_cosine")
    if cosine is None:
        return None
    last = cosine.last_step()
    factors = int(last.other_factor.max()) + 1
    sums, counts = np.zeros((factors, factors)), np.zeros((factors, factors))
    np.add.at(sums, (last.factor, last.other_factor), last.value)
    np.add.at(counts, (last.factor, last.other_factor), 1)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _signed(value: float) -> str:
    """With its sign, unless it is shown as zero."""
    text = number(value, 2, signed=True)
    return "0.00" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
