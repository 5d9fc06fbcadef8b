"""The command line: which commands there are, and what becomes of errors. No heavy import before a command needs it."""

from __future__ import annotations

import errno
import sys
from typing import Annotated

import typer

from flr_bench import __version__
from flr_bench.commands.backbone import backbone_app
from flr_bench.commands.cluster import cluster_app
from flr_bench.commands.compare import diff, explain
from flr_bench.commands.data import data_app
from flr_bench.commands.doctor import check, doctor
from flr_bench.commands.inspect import inspect_app
from flr_bench.commands.methods import methods_app
from flr_bench.commands.plan import plan
from flr_bench.commands.refresh import refresh
from flr_bench.commands.report import report
from flr_bench.commands.reproduce import reproduce
from flr_bench.commands.run import ablate, run
from flr_bench.commands.running import say
from flr_bench.commands.score import score
from flr_bench.commands.store import store_app
from flr_bench.commands.suites import suites_app
from flr_bench.commands.tables import tables
from flr_bench.commands.trace import trace
from flr_bench.commands.track import track_app
from flr_bench.commands.tune import tune
from flr_bench.commands.ui import ui
from flr_bench.errors import FlrBenchError

_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)

app = typer.Typer(
    name="flr-bench",
    help="A benchmark of latent reasoning for LLM-based sequential recommendation.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

COMMANDS = (
    run, ablate, plan, tune, tables, diff, explain, reproduce, score, refresh, report, trace, ui, doctor, check,
)  # fmt: skip
GROUPS = {
    "methods": methods_app,
    "data": data_app,
    "cluster": cluster_app,
    "store": store_app,
    "suites": suites_app,
    "backbone": backbone_app,
    "track": track_app,
    "inspect": inspect_app,
}
for command in COMMANDS:
    app.command()(command)
for name, group in GROUPS.items():
    app.add_typer(group, name=name)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"flr-bench {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A benchmark of latent reasoning for LLM-based sequential recommendation."""
    del version


def main() -> None:
    """Entry point: an error the user can mend is one line on standard error and an exit code."""
    from flr_bench.interrupts import interruptible

    with interruptible() as arrived:
        try:
            _call()
        except SystemExit:
            if arrived.exit_code is not None:
                sys.exit(arrived.exit_code)
            raise


def _call() -> None:
    try:
        app()
    except FlrBenchError as error:
        say(f"flr-bench: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        say(f"flr-bench: cannot write {error.filename or 'a file'}: {error.strerror}; finished cells are kept")
        sys.exit(1)


if __name__ == "__main__":
    main()
