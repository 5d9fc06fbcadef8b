"""``flr-bench methods``: parses, calls, prints."""

from __future__ import annotations

import typer

from flr_bench.commands.options import MethodName

methods_app = typer.Typer(help="List the registered methods, or show one of them.", rich_markup_mode=None)


@methods_app.callback(invoke_without_command=True)
def methods(context: typer.Context) -> None:
    """List the registered methods: name, family, one line, paper."""
    if context.invoked_subcommand is not None:
        return
    from flr_bench.runner.describe import method_rows

    for name, family, line, citation in method_rows():
        typer.echo(f"{name:<18} {family:<11} {line}\n{'':<30} {citation}")


@methods_app.command("show")
def methods_show(name: MethodName) -> None:
    """Show a method's documentation and parameters: defaults, meaning, ranges."""
    from flr_bench.runner.describe import method_text

    typer.echo(method_text(name))
