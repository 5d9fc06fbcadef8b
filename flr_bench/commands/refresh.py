"""``flr-bench refresh``: parses, calls, prints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def refresh(
    folders: Annotated[
        list[Path], typer.Argument(help="Published folders, for example results/main/cpu.", show_default=False)
    ],
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail if a table would change.")] = False,
) -> None:
    """Make the quality tables of published results again from their ranks, without a store.

    Means, differences, strata and captions follow from ranks.parquet and manifest.json; cost.*, training.*, search.*
    and figures stay as they are.
    """
    from flr_bench.report.published import refresh as made_again

    refreshed = [made_again(folder) for folder in folders]
    changed = [one.folder / name for one in refreshed for name in one.changed]
    if not check:
        for one in refreshed:
            one.write()
    for path in changed:
        typer.echo(f"{path} would change" if check else str(path))
    if not changed:
        typer.echo("nothing to change")
    if check and changed:
        raise typer.Exit(1)
