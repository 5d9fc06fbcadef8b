"""Views of an experiment that MLflow's page lists under its button "Views": chosen runs, columns and charts.

Without them the page of a suite shows one folded run and no chart, since figures are those of the cells below it.
MLflow keeps a view as a tag of its experiment, written by its page when somebody saves one; these are written the
same way (read in the page of MLflow 3.17).  A version that does not know them ignores the tags.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

VIEW_TAG = "mlflow.sharedViewState."
KIND_OF_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}
"""What makes MLflow show pages for training runs and leave out those for chat applications."""
SECTION = "To begin with"
FOLDED = ("epoch", "Model metrics", "System metrics")
"""Sections in which MLflow puts a chart for every other metric; there are dozens, so they begin folded."""
CURVES = ("epoch/valid_nll", "epoch/nll", "epoch/valid_nll by 0.01 epoch", "epoch/reward_mean by 0.01 epoch")
RANKINGS, FITS = "tags.kind = 'rank'", "tags.kind = 'fit'"
_EVERY_RUN = {"startTime": "ALL", "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs"}


def metric(name: str) -> str:
    """A metric's column."""
    return f"metrics.`{name}`"


def tag(name: str) -> str:
    """A tag's column."""
    return f"tags.`{name}`"


def view_key(name: str) -> str:
    """What a view is called in addresses (``viewStateShareKey``)."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())


def param(name: str) -> str:
    """A parameter's column."""
    return f"params.`{name}`"


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        kind: ``"BAR"``, ``"LINE"`` or ``"PARALLEL"``.
        metrics: which are drawn; one for bars.
        params: axes of parallel coordinates besides the metrics.
    """

    kind: str
    metrics: tuple[str, ...]
    params: tuple[str, ...] = ()

    def state(self, number: int) -> dict[str, Any]:
        """As MLflow's page keeps it."""
        common = {"uuid": f"chart {number}", "type": self.kind, "metricSectionId": SECTION, "deleted": False}
        common |= {"isGenerated": False, "runsCountToCompare": 100}
        if self.kind == "PARALLEL":
            axes = {"selectedParams": list(self.params), "selectedMetrics": list(self.metrics)}
            return {**common, **axes, "showAllRuns": True}
        one = {"metricKey": self.metrics[0], "displayName": self.metrics[0]}
        if self.kind == "BAR":
            return {**common, **one}
        line = {"selectedMetricKeys": list(self.metrics), "xAxisKey": "step", "scaleType": "linear"}
        return {**common, **one, **line, "xAxisScaleType": "linear", "lineSmoothness": 0, "range": {}}


@dataclass(frozen=True)
class View:
    """A view.

    Attributes:
        name: as listed.
        runs: which runs, in MLflow's language of filters.
        columns: of the list, beside the run's name.
        order: the column that the list is sorted by, highest first.
        charts: in order.
        group: the tag whose values are drawn as means over their runs; every run for itself if none.
        abreast: how many charts stand side by side.
    """

    name: str
    runs: str
    columns: tuple[str, ...]
    order: str
    charts: tuple[Chart, ...] = ()
    group: str | None = None
    abreast: int = 2

    @property
    def key(self) -> str:
        """The tag that holds it."""
        return VIEW_TAG + view_key(self.name)

    def state(self) -> dict[str, Any]:
        """As MLflow's page keeps it."""
        grouped = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": self.group}]}
        shown: dict[str, Any] = {
            **_EVERY_RUN,
            "searchFilter": self.runs,
            "orderByKey": self.order,
            "orderByAsc": False,
            "selectedColumns": list(self.columns),
            "columnOrder": [],
            "columnWidths": {},
            "runsHidden": [],
            "runsHiddenMode": "SHOW_ALL",
            "viewMaximized": False,
            "runListHidden": False,
            "isAccordionReordered": True,
            "useGroupedValuesInCharts": True,
            "hideEmptyCharts": True,
            "groupsExpanded": {},
            "groupBy": grouped if self.group else None,
            "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        }
        charts = [chart.state(number) for number, chart in enumerate(self.charts)]
        sections = [_section(SECTION) | {"columns": self.abreast}]
        sections += [_section(name) | {"display": False} for name in FOLDED]
        return shown | ({"compareRunCharts": charts, "compareRunSections": sections} if charts else {})


def _section(name: str) -> dict[str, Any]:
    plain = {"isReordered": False, "deleted": False, "isGenerated": False}
    return {"uuid": name, "name": name, "display": True, **plain}


@dataclass(frozen=True)
class Page:
    """What an experiment's page offers.

    Attributes:
        note: the experiment's description, as Markdown.
        views: in the order of the list.
        tags: the experiment's other tags.
    """

    note: str
    views: Sequence[View]
    tags: Mapping[str, str] = field(default_factory=lambda: KIND_OF_EXPERIMENT)


def suite_page(description: str, metrics: Sequence[str]) -> Page:
    """The page of a suite.

    Args:
        description: what the suite is about.
        metrics: of its rankings, as MLflow takes their names, the primary one first.
    """
    primary = metrics[0]
    about = (tag("data"), tag("seed"))
    shown = tuple(metric(name) for name in metrics[:3])  # tags come after metrics, and should be in sight
    bars = tuple(Chart("BAR", (name,)) for name in metrics)
    curves = tuple(Chart("LINE", (name,)) for name in (f"epoch/{primary}", *CURVES))
    fits = (tag("method"), tag("stage"), *about, metric("best_epoch"), metric("nll_valid_after"), metric("seconds"))
    views = (
        View("Rankings, best first", RANKINGS, (*shown, tag("row"), *about), metric(primary), bars),
        View("Rows, means over seeds", RANKINGS, shown, metric(primary), bars, group="row"),
        View("Training curves", FITS, fits, metric("seconds"), curves),
    )
    note = f"{description}\n\nThe button *Views* lists what to begin with: {', '.join(view.name for view in views)}."
    return Page(note.strip(), views)


def tuning_page(studies: Sequence[tuple[str, str, Sequence[str], str]]) -> Page:
    """The page of a suite's tuning studies.

    Args:
        studies: of each its key, name, parameters and metric, the latter two as MLflow takes their names.
    """
    views = []
    for key, name, params, measured in studies:
        axes = tuple(params)
        columns = (tag("trial"), tag("state"), metric(measured), metric("seconds"), *map(param, axes))
        charts = (Chart("PARALLEL", (measured,), axes), Chart("BAR", (measured,)), Chart("BAR", ("seconds",)))
        trials = f"tags.kind = 'trial' and tags.study = '{key}'"
        views.append(View(name, trials, columns, metric(measured), charts, abreast=1))
    note = (
        "A run for each study, and below it one for each trial; figures are of the valid examples, none of test. "
        "The button *Views* has a list and a chart of parallel coordinates for each study."
    )
    return Page(note, views)


def write_page(client: Any, experiment: str, page: Page) -> None:
    """Set the experiment's tags that are missing or differ; views that people saved stay."""
    about = client.get_experiment(experiment)
    made = int(about.creation_time or 0)  # views are listed by their age, and need one that stays the same
    wanted = {**page.tags, "mlflow.note.content": page.note}
    wanted |= {view.key: packed(view, made - number) for number, view in enumerate(page.views)}
    for key, value in wanted.items():
        if about.tags.get(key) != value:
            client.set_experiment_tag(experiment, key, value)


def packed(view: View, created_ms: int) -> str:
    """A view as the value of its tag."""
    state = json.dumps(view.state(), separators=(",", ":"), ensure_ascii=False)
    small = base64.b64encode(zlib.compress(state.encode(), 9)).decode()
    envelope = {"name": view.name, "createdAt": created_ms, "updatedAt": created_ms, "state": f"deflate;{small}"}
    return json.dumps(envelope, ensure_ascii=False)
