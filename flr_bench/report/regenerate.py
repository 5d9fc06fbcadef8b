"""Everything in a results folder that can be made again without a store, in one go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flr_bench.errors import UsageError
from flr_bench.report.error_rates import error_rate_tables
from flr_bench.report.page.publishing import FOLDER as PAGES
from flr_bench.report.page.publishing import published_pages
from flr_bench.report.published import refresh
from flr_bench.report.published_page import FOLDER, published_files
from flr_bench.report.write import holds, make_folder, write_file

ELSEWHERE = {
    "simulations": "rates and pictures by python -m flr_bench.report.error_rates",
    "benchmarks": "the commands that its files name; measured",
    "tuning": "flr-bench tune, from its store",
}
"""Folders that nothing here makes again, and what does."""
FROM_STORE = "cost.*, training.* and figures: flr-bench tables, from the store"


@dataclass(frozen=True)
class Regenerated:
    """What a results folder's files are when they are made again.

    Attributes:
        files: path → content of each that differs from what lies there.
        left: what was left as it is, one line each.
    """

    files: dict[Path, bytes]
    left: tuple[str, ...]

    def write(self) -> list[Path]:
        """Write what differs, each file whole or not at all."""
        for folder in {path.parent for path in self.files}:
            make_folder(folder, figures=False)
        return [write_file(path, content) for path, content in sorted(self.files.items())]


def regenerate(results: Path, folders: Sequence[Path] | None = None, *, add: bool = False) -> Regenerated:
    """Make tables again: of the folders given, or of everything in ``results``, pages of several suites with it.

    Args:
        results: the results folder.
        folders: published folders, for example ``results/main/cpu``; ``None`` for all there are.
        add: make also tables that were not written before, ``results/published`` and ``results/report``.

    Raises:
        UsageError: a folder that was given cannot be made again without its store, or nothing is published.
        DamagedFileError: a file cannot be read, or contradicts another.
    """
    files: dict[Path, bytes] = {}
    left: list[str] = []
    for folder in published_folders(results) if folders is None else folders:
        try:
            made = refresh(folder, add=add)
        except UsageError as error:
            if folders is not None:
                raise
            left.append(str(error))
            continue
        files |= {folder / name: made.files[name] for name in made.changed}
    if folders is None:
        files |= derived(results, add=add).files
        left.append(FROM_STORE)
        left += [f"{results / name}: {command}" for name, command in ELSEWHERE.items() if (results / name).is_dir()]
    return Regenerated(files, tuple(left))


def derived(results: Path, *, add: bool = False) -> Regenerated:
    """What is made of the suites' published folders: ``published``, ``simulations`` and ``report``.

    Args:
        results: the results folder.
        add: make also what is not there yet.

    Raises:
        DamagedFileError: a file cannot be read.
    """
    simulations = results / "simulations"
    files = {simulations / name: content for name, content in error_rate_tables(simulations).items()}
    if add or (results / FOLDER).is_dir():
        files |= {results / name: content for name, content in published_files(results).items()}
    if add or (results / PAGES).is_dir():
        files |= published_pages(results)
    return Regenerated({path: content for path, content in files.items() if not holds(path, content)}, ())


def published_folders(results: Path) -> list[Path]:
    """The folders of suites in a results folder.

    Raises:
        UsageError: there are none.
    """
    found = sorted(path.parent for path in results.glob("*/*/manifest.json"))
    if not found:
        raise UsageError(f"nothing is published in {results}; write it with flr-bench tables, or name --results")
    return found


def folders_of(results: Path, suites: Sequence[str] | None, profile: str | None) -> list[Path]:
    """The published folders of some suites.

    Raises:
        UsageError: a suite is not published there.
    """
    found = published_folders(results)
    for name in suites or ():
        if not any(name in (folder.parent.name, folder.parent.name.partition("@")[0]) for folder in found):
            known = ", ".join(sorted({folder.parent.name for folder in found}))
            raise UsageError(f"{results} has no suite {name}; published: {known}")
    return [
        folder
        for folder in found
        if (suites is None or folder.parent.name in suites or folder.parent.name.partition("@")[0] in suites)
        and profile in (None, folder.name)
    ]
