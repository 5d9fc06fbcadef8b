"""``flr-bench doctor`` and ``flr-bench check``: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Install what is missing and can be installed.")] = False,
) -> None:
    """Check versions, device and disk; name what is missing and the command that mends it."""
    from flr_bench.doctor import diagnose

    raise typer.Exit(diagnose(fix))


def check(
    target: Annotated[str, typer.Argument(help="A Python package or file that registers a method.")],
) -> None:
    """Hold someone's own method to the contract, in under a minute."""
    from flr_bench.testing.check import check as check_method

    report = check_method(target)
    for line in report.lines():
        typer.echo(line)
    raise typer.Exit(0 if report.ok else 1)
