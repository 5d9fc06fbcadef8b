"""``flr-bench ui``: parses, calls, prints."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from flr_bench.commands.options import MLRUNS, Mlruns
from flr_bench.commands.running import say


def ui(
    mlruns: Mlruns = MLRUNS,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Where to listen, on this machine only.")
    ] = 5000,
) -> None:
    """Start MLflow's UI on the right store; Ctrl-C ends it."""
    import subprocess

    from flr_bench.tracking import tracking_uri, ui_command

    uri = tracking_uri(None, mlruns)
    if uri.startswith(("http://", "https://")):
        typer.echo(f"runs are mirrored to the MLflow server at {uri}: look there")
        return
    command = ui_command(None, mlruns, port)
    environment = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}
    say(f"MLflow on http://127.0.0.1:{port}, Ctrl-C ends it")
    try:
        code = subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - our own interpreter
    except KeyboardInterrupt:
        code = 0
    raise typer.Exit(code)
