"""``flr-bench cluster``: parses, calls, prints."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flr_bench.commands.options import CACHE, RUNS, AsJson, Cache, Runs
from flr_bench.errors import UsageError

if TYPE_CHECKING:
    from flr_bench.runner.dask_executor import Worker

cluster_app = typer.Typer(
    help="Dask clusters: try one here, or check one.", no_args_is_help=True, rich_markup_mode=None
)


@cluster_app.command("local")
def local(
    workers: Annotated[int, typer.Option("--workers", min=1, help="Worker processes.")] = 2,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Cells that each computes side by side.")] = 1,
    gpus: Annotated[bool, typer.Option("--gpus", help="One GPU for each worker in turn.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of the scheduler; 0 takes a free one.")] = 0,
) -> None:
    """Start a scheduler and workers on this machine, for trying; Ctrl-C ends them."""
    from flr_bench.runner.dask_executor import serve_local
    from flr_bench.runner.executors import visible_gpus

    names = visible_gpus() if gpus else ()
    if gpus and not names:
        raise UsageError("--gpus: this machine shows no GPU; mend CUDA_VISIBLE_DEVICES or leave the option out")
    try:
        with serve_local(workers, threads, names, port) as cluster:
            address = cluster.scheduler_address
            typer.echo(f"{workers} workers at {address}; Ctrl-C ends them. In another shell:")
            typer.echo(f"  flr-bench run --suite smoke --dask {address}")
            threading.Event().wait()
    except KeyboardInterrupt:
        typer.echo("ended", err=True)
        raise typer.Exit(130) from None


@cluster_app.command("check")
def check(
    address: Annotated[str, typer.Argument(help="Of the scheduler, e.g. tcp://127.0.0.1:8786.")],
    runs: Runs = RUNS,
    cache: Cache = CACHE,
    as_json: AsJson = False,
) -> None:
    """List the workers of a Dask cluster: version, torch, size, whether they see the store and may compute."""
    from flr_bench.runner.dask_executor import check_cluster

    found = check_cluster(address, _existing(runs), cache)
    if as_json:
        typer.echo(json.dumps([_row(worker) for worker in found], default=str))
    for worker in found if not as_json else ():
        typer.echo(_line(worker))
    usable = sum(not worker.problem for worker in found)
    if not as_json:
        typer.echo(f"{usable} of {len(found)} workers can compute")
    raise typer.Exit(0 if usable else 1)


def _existing(runs: Path) -> Path | None:
    """The store, if it is there; looking at a cluster makes none."""
    return runs if (runs / "store.json").is_file() else None


def _row(worker: Worker) -> dict[str, Any]:
    return {"name": worker.name, **asdict(worker)}


def _line(worker: Worker) -> str:
    from flr_bench.runner.limits import shown_bytes

    about = worker.description
    if about is None:
        return f"{worker.shown}: {worker.problem}"
    parts = [f"flr-bench {about.identity['flr-bench']}", f"commit {about.identity['commit']}"]
    parts += [f"torch {about.identity['torch']}", f"{about.cores} cores", f"{shown_bytes(about.memory)} free"]
    parts += [f"{len(about.gpus)} GPUs"] if about.gpus else []
    parts.append("sees the store" if about.sees else "does not see the store: results are sent back")
    return f"{worker.shown}: {', '.join(parts)}" + (f"; REFUSED: {worker.problem}" if worker.problem else "")
