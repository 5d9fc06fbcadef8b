"""Several processes, one on each device, that compute one fit or one ranking together.

Every nominal batch is divided over the processes.  What a process adds to the loss is divided by the
tokens or examples of the *whole* batch, so that the gradient of one process is the plain sum over all
of them: an update on any number of devices is the same to rounding.  Noise, shuffles and advantages
are drawn and computed for the whole batch on every process, so the reinforcement does not depend on
the number of devices either (LatentR3's does [C]: its advantages are taken over what two GPUs exchange).

Every process holds the whole model and makes the same updates (data parallel).  Where a backbone does
not fit a device, :func:`shard_layers` spreads its decoder layers over the processes (FSDP).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from flr_bench.errors import FlrBenchError

Value = TypeVar("Value")
Ints = npt.NDArray[np.int64]

#: Gradients are summed in pieces of about this many bytes: few messages, and little memory beyond them.
BUCKET_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Group:
    """The processes that compute something together, as one of them sees it.

    All of them call the collectives (:meth:`sum_`, :meth:`gather` and what is built on them) in the same order.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are; 1 talks to nobody.
        device: where its tensors must lie to be exchanged.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def of(cls, devices: int) -> Group:
        """The group of ``devices`` processes that this one has joined; :data:`ALONE` for 1.

        Raises:
            FlrBenchError: this process belongs to no such group.
        """
        if devices == 1:
            return ALONE
        from accelerate import PartialState

        joined = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not joined or torch.distributed.get_world_size() != devices:
            raise FlrBenchError(
                f"{devices} devices were asked for and this process is not one of {devices} started together; "
                "run through flr-bench with --devices, or ask for 1"
            )
        state = PartialState()
        return cls(int(state.process_index), int(state.num_processes), cast(torch.device, state.device))

    def share(self, rows: Ints) -> Ints:
        """This process's part of ``rows``, dealt out one by one: sorted by length, all parts cost about the same.

        Over all processes each row once; alone all of them; none where there are more processes than rows.
        """
        return rows[self.rank :: self.size]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace ``tensor`` on every process by its sum over all of them; the same bits everywhere."""
        if self.size > 1:
            there = tensor.to(self.device)
            torch.distributed.all_reduce(there)
            if there is not tensor:
                tensor.copy_(there)
        return tensor

    def sum_array(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The sum over all processes; where each fills in its own rows of zeros, all rows."""
        if self.size == 1:
            return values
        # numpy's float64 arrays and torch's tensors share memory, but not every device knows float64.
        return self.sum_(torch.from_numpy(values.copy())).numpy()

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank; any value that can be pickled."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return cast(list[Value], gather_object([value]))

    def sum_figures(self, figures: Mapping[str, float]) -> dict[str, float]:
        """The sums of named figures over all processes; a process without a share may lack names."""
        total: dict[str, float] = {}
        for own in self.gather(dict(figures)):
            for name, value in own.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of all processes' gradients.

        A parameter without a gradient on any process keeps none; sharded ones were summed by the backward pass.
        """
        if self.size == 1:
            return
        whole = [parameter for parameter in parameters if not is_sharded(parameter)]
        used = self.sum_(torch.tensor([float(parameter.grad is not None) for parameter in whole]))
        gradients = []
        for parameter, uses in zip(whole, used.tolist(), strict=True):
            if not uses:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = self.sum_(torch.cat([gradient.flatten() for gradient in bucket]))
            for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))


#: One process: every collective gives back what it was given.
ALONE = Group()


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one type and device, up to :data:`BUCKET_BYTES` together (at least one each)."""
    buckets: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        last = buckets[-1][-1] if buckets else None
        alike = last is not None and (last.dtype, last.device) == (tensor.dtype, tensor.device)
        size = tensor.numel() * tensor.element_size()
        if alike and size <= room:
            buckets[-1].append(tensor)
            room -= size
        else:
            buckets.append([tensor])
            room = BUCKET_BYTES - size
    return buckets


def join(rank: int, size: int, rendezvous: Path, device: str) -> Group:
    """Make this process the one numbered ``rank`` of ``size`` on this machine, each with a device of its own.

    CPU processes exchange through gloo, CUDA ones through nccl.

    Args:
        rank: from 0.
        size: at least 2.
        rendezvous: a file that does not exist yet, the same for all; no port is needed.
        device: type of torch device.

    Raises:
        FlrBenchError: there are fewer CUDA devices than processes.
    """
    if device == "cuda" and torch.cuda.device_count() < size:
        raise FlrBenchError(f"{size} devices were asked for and torch finds {torch.cuda.device_count()}; use fewer")
    from accelerate import PartialState

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
    }
    PartialState(
        cpu=device == "cpu",
        init_method=f"file://{rendezvous.resolve()}",
        rank=rank,
        world_size=size,
        # Whoever started the processes notices if one dies; waiting for a slow one is no failure.
        timeout=timedelta(days=1),
    )
    return Group.of(size)


class _ShardedLayer(Protocol):
    """What torch's FSDP makes of a layer, as far as it is used here."""

    def set_gradient_divide_factor(self, factor: float) -> None:
        """By what the sum of all processes' gradients is divided."""

    def set_force_sum_reduction_for_comms(self, enable: bool) -> None:
        """Whether gradients are summed as they are exchanged, which gloo needs."""


def shard_layers(language_model: nn.Module, group: Group) -> None:
    """Spread the decoder layers' weights over the processes (FSDP2); each is put together while it runs.

    Embeddings, final norm and head stay whole on every process: branches call them on their own, and
    head and embeddings may be tied.  From then on all processes must run the same number of passes.

    Args:
        language_model: a ``transformers`` model, on the CPU if it does not fit the device; its gradients are
            on where they shall be.  Ends up on the group's device.
        group: at least two processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(group.device.type, (group.size,))
    names = set(getattr(language_model, "_no_split_modules", None) or ())
    for layer in [module for module in language_model.modules() if type(module).__name__ in names]:
        sharded = cast(_ShardedLayer, fully_shard(layer, mesh=mesh, reshard_after_forward=True))
        # A process's loss is its share of the batch's already: gradients are added, not averaged.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    language_model.to(group.device)


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of ``tensor`` only."""
    return hasattr(tensor, "full_tensor")


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The module's state on the CPU, sharded tensors put together; all processes must call it."""
    state = {}
    for name, value in module.state_dict().items():
        tensor = cast(Any, value).full_tensor() if is_sharded(value) else value
        state[name] = tensor.detach().cpu()
    return state


@torch.no_grad()
def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float, group: Group) -> float:
    """Cut the gradients to ``max_norm`` together, sharded ones too; returns their norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not any(map(is_sharded, gradients)):
        return float(nn.utils.clip_grad_norm_(parameters, max_norm))
    squares = {True: torch.zeros((), dtype=torch.float64), False: torch.zeros((), dtype=torch.float64)}
    for gradient in gradients:
        own = cast(Any, gradient).to_local() if is_sharded(gradient) else gradient
        squares[is_sharded(gradient)] += own.double().square().sum().cpu()
    norm = float((squares[False] + group.sum_(squares[True])).sqrt())
    for gradient in gradients:
        gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))
    return norm
