"""How far a long read of files is, without the reader's help."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["bytes_read", "shown_reading"]

_INTERVAL = 0.25
"""Seconds between two looks."""


def bytes_read(paths: Sequence[Path], done: set[Path]) -> int:
    """How many bytes of the files this process has read: where their open descriptors stand (Linux).

    Args:
        paths: the files, resolved, in the order in which they are read.
        done: files known to be read; one is added when a later one is open and it is not.
    """
    positions = _positions(set(paths))
    if positions:
        last = max(paths.index(path) for path in positions)
        done |= {path for path in paths[:last] if path not in positions}
    sizes = {path: path.stat().st_size for path in paths}
    return sum(sizes[path] if path in done else positions.get(path, 0) for path in paths)


@contextlib.contextmanager
def shown_reading(paths: Sequence[Path], *, show: bool) -> Iterator[None]:
    """Show a bar with the time left on stderr while the files are read; it goes away at the end.

    Args:
        paths: the files.
        show: whether to show anything, for example because stderr is a terminal.
    """
    if not show:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    files = [path.resolve() for path in paths]
    total = sum(path.stat().st_size for path in files)
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    over = threading.Event()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=total)

        def follow() -> None:
            done: set[Path] = set()
            while not over.wait(_INTERVAL):
                bar.update(task, completed=bytes_read(files, done))

        watcher = threading.Thread(target=follow, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _positions(paths: set[Path]) -> dict[Path, int]:
    """Where each of the files that are open stands; nothing on systems without ``/proc``."""
    positions: dict[Path, int] = {}
    descriptors = Path("/proc/self/fd")
    with contextlib.suppress(OSError):
        for descriptor in descriptors.iterdir():
            with contextlib.suppress(OSError, ValueError, StopIteration):
                path = descriptor.readlink()
                if path in paths:
                    lines = Path(f"/proc/self/fdinfo/{descriptor.name}").read_text(encoding="ascii").splitlines()
                    position = int(next(line for line in lines if line.startswith("pos:")).split()[1])
                    positions[path] = max(position, positions.get(path, 0))
    return positions
