from __future__ import annotations

import io

from rich.console import Console

from flr_bench.runner.events import Event
from flr_bench.runner.progress import LiveDisplay


def test_brackets_in_a_label_are_no_markup() -> None:
    display = LiveDisplay(1)
    display(Event("started", "x", "fit [/mine]", {}))
    console = Console(file=io.StringIO(), width=120)
    console.print(display._progress)
    assert "fit [/mine]" in console.file.getvalue()  # type: ignore[attr-defined]
