"""Other ways to run a model's decoder layers in training: computed again in the backward pass, or compiled.

``transformers`` switches the key/value cache off together with its own activation checkpointing, and
the branches live on that cache.  Here a layer's ``forward`` is replaced for the time of training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from flr_bench.errors import UsageError

Forward = Callable[..., Any]
KeysValues = tuple[Tensor, Tensor]


@contextmanager
def prepared_layers(model: nn.Module, *, recompute: bool = False, compiled: bool = False) -> Iterator[None]:
    """Run the decoder layers of ``model`` in another way meanwhile; its weights and results stay what they are.

    Args:
        model: a ``transformers`` causal language model, also inside a peft wrapper.
        recompute: keep only a layer's inputs for the backward pass and compute the rest again there.  Keys and
            values that leave a layer through the cache keep their graph.
        compiled: run the layers through ``torch.compile``, for any length.  Other sums, so other rounding.

    Raises:
        UsageError: the model's layers cannot be found, or nothing can be compiled here.
    """
    if not (recompute or compiled):
        yield
        return
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        wanted = "compile" if compiled else "activation_checkpointing"
        raise UsageError(f"{wanted} knows no decoder layers in {type(model).__name__}; leave it out")
    if compiled:
        _require_compiler(next(model.parameters()).device)
    with _many_variants() if compiled else nullcontext():
        run = torch.compile(_run, dynamic=True) if compiled else _run
        for index, layer in enumerate(layers):
            layer.forward = _through(layer, index, _recomputed(run) if recompute else run)
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward  # the class's own again


class _OneLayer:
    """Stands in for the whole cache while one layer runs: tensors in, tensors out, so that it can be compiled."""

    def __init__(self, past: Sequence[KeysValues]) -> None:
        self._past = past
        self.new: KeysValues

    def update(self, keys: Tensor, values: Tensor, *_args: object, **_kwargs: object) -> KeysValues:
        self.new = (keys, values)
        if not self._past:
            return keys, values
        return (
            torch.cat([*(keys for keys, _ in self._past), keys], dim=-2),
            torch.cat([*(values for _, values in self._past), values], dim=-2),
        )


def _run(layer: nn.Module, past: Sequence[KeysValues], arguments: dict[str, Any]) -> tuple[Any, KeysValues]:
    """One layer's output, and the keys and values of its new tokens."""
    cache = _OneLayer(past)
    # The class's forward: the layer's own is what calls this.
    output = type(layer).forward(layer, **{**arguments, "past_key_values": cache})
    return output, cache.new


def _recomputed(run: Forward) -> Forward:
    def again(*args: Any) -> Any:
        return checkpoint(run, *args, use_reentrant=False) if torch.is_grad_enabled() else run(*args)

    return again


def _through(layer: nn.Module, index: int, run: Forward) -> Forward:
    """The layer's ``forward`` by way of ``run``, where the cache holds plain tensors.

    A search's growing buffers, and passes without a cache, are left alone.
    """
    plain, signature = layer.forward, inspect.signature(layer.forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        arguments.pop("kwargs", None)
        cache = arguments.get("past_key_values")
        slot = cache.layers[index] if cache is not None else None
        if slot is None or torch.is_inference_mode_enabled() or not isinstance(slot.past, tuple):
            return plain(*args, **kwargs)
        output, (slot.keys, slot.values) = run(layer, slot.past, arguments)
        return output

    return forward


def _many_variants() -> AbstractContextManager[None]:
    """Room for what training needs of one layer: with and without gradient, mask, past, and single examples."""
    import torch._dynamo

    found: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=64)
    return found


def _require_compiler(device: torch.device) -> None:
    """Compile something small.

    Raises:
        UsageError: that failed.
    """
    import torch._dynamo

    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(3, device=device))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError, ImportError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UsageError(
            f"compile: true cannot be had on this machine ({lines[0][:200]}); install a C++ compiler or leave it out"
        ) from error
