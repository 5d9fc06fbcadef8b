"""The figures of a page, drawn from the store, and what each says in words."""

from __future__ import annotations

from flr_bench.report.page.pictures import Picture, picture
from flr_bench.report.reading import SuiteView
from flr_bench.report.tables import metric_title

TITLES = {
    "quality": ("Quality", "{metric} of every row with its 95 % interval; one line per model, one mark per decoding"),
    "cost": ("Quality against cost", "{metric} against the seconds to train and rank"),
    "curves": ("Training curves", "what was watched and minimised, epoch by epoch"),
    "search": ("What beam search misses", "items of the true top list that a beam search lacks, by number of beams"),
}


def drawn(view: SuiteView, data: str) -> list[Picture]:
    """Every figure that the finished cells allow."""
    from flr_bench.report.figures import draw_figures

    return [
        picture(name, data, *described(view, data, name), formats["svg"])
        for name, formats in draw_figures(view, data).items()
    ]


def described(view: SuiteView, data: str, name: str) -> tuple[str, str]:
    """Title and words of a figure by its name."""
    title, says = TITLES.get(name, (name.replace("_", " ").capitalize(), "drawn from the same numbers as the tables"))
    return title, f"On {data}: {says.format(metric=metric_title(view.primary))}. The numbers stand in the tables."
