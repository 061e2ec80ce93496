"""The processes of one run: one, or several that share each batch and each evaluation.

Several processes are started by `torchrun`, by SLURM, or by the run itself (`train.devices=2`), one for
each GPU or, on a processor, as many as asked for. Every process does the same; only the first one prints
and writes. The data's folder and the run's folder must be seen by all of them under the same path.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy

from segtune.config.run import RunConfig
from segtune.engine.build import choose_device, choose_precision
from segtune.errors import SegtuneError, UsageError

if TYPE_CHECKING:
    from segtune.engine.shards import Shards
    from segtune.methods.apply import Applied

T = TypeVar("T")


class World:
    """The processes of a run, as one of them sees them.

    Args:
        fabric: launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.rank = fabric.global_rank
        self.size = fabric.world_size
        self.shards: Shards | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def first(self, make: Callable[[], T]) -> T:
        """What the first process makes, given to all; an error of its is raised by all.

        Raises:
            SegtuneError: what the first process raised.
        """
        if self.size == 1:
            return make()
        held: list[Any] = [None]
        if self.is_first:
            try:
                held = [make()]
            except SegtuneError as error:
                held = [error]
        dist.broadcast_object_list(held, src=0)
        if isinstance(held[0], SegtuneError):
            raise held[0]
        made: T = held[0]
        return made

    def gather(self, own: T) -> list[T]:
        """What every process has, in their order, given to all."""
        if self.size == 1:
            return [own]
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, own)
        return parts

    def share(self, items: Sequence[T], key: Callable[[T], str]) -> list[T]:
        """This process's part of what has to be done once; items of one key stay together."""
        place = {name: number for number, name in enumerate(dict.fromkeys(map(key, items)))}
        return [item for item in items if place[key(item)] % self.size == self.rank]

    def copy_first(self, tensors: Iterable[torch.Tensor]) -> None:
        """Gives tensors, in every process, the values that they have in the first one."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over processes of a scalar, without gradient."""
        if self.size == 1:
            return value.detach()
        reduced: torch.Tensor = self.fabric.all_reduce(value.detach(), reduce_op="mean")  # type: ignore[assignment]
        return reduced

    def divide(self, applied: Applied) -> None:
        """Divides the model among the processes, where the run asks for it; its tensors are others then."""
        strategy = self.fabric.strategy
        if isinstance(strategy, ModelParallelStrategy):
            from segtune.engine.shards import Shards

            self.shards = Shards(applied, strategy.device_mesh["data_parallel"])

    def set_up(self, model: Any, optimizer: Any) -> tuple[Any, Any]:
        """The model and its optimiser as the processes train them together."""
        if self.shards is None:
            wrapped: tuple[Any, Any] = self.fabric.setup(model, optimizer)
            return wrapped
        return self.fabric.setup_module(model, move_to_device=False), self.fabric.setup_optimizers(optimizer)

    def whole(self) -> AbstractContextManager[None]:
        """Within it every process has the whole model, to score it or to save it; it is not trained there."""
        return nullcontext() if self.shards is None else self.shards.whole()

    def require_whole_tensors(self, setting: str) -> None:
        """Raises UsageError where what is trained is divided among the processes."""
        if self.shards is not None and self.shards.trained_too:
            raise UsageError(
                f"{setting} needs whole tensors, and train.strategy=fsdp divides those of a model that is"
                " trained as a whole",
                hint="train.average_best averages too; or train.strategy=ddp, or a method that trains less",
            )

    def average_gradients(self) -> None:
        """Called before an optimiser's step."""
        if self.shards is not None:
            self.shards.average_gradients()


def join_world(config: RunConfig) -> World:
    """Sets up the processes that the settings ask for; where they are started here, this starts them.

    Raises:
        UsageError: the batch cannot be divided, there are fewer GPUs than asked for, or the strategy does not
            fit.
    """
    train = config.train
    device = choose_device(train.accelerator)
    precision: Any = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[
        choose_precision(train.precision, device)
    ]
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    size = train.devices * train.num_nodes
    if train.strategy == "fsdp" and size == 1:
        raise UsageError(
            "train.strategy=fsdp divides a model among processes, and there is one",
            hint="train.devices=2, or leave train.strategy out",
        )
    if train.strategy == "fsdp" and config.model_common.quantize != "none":
        raise UsageError(
            f"train.strategy=fsdp divides weights of floats, and model.quantize="
            f"{config.model_common.quantize} keeps others",
            hint="train.strategy=ddp, or leave model.quantize out",
        )
    if train.strategy == "fsdp" and precision == "16-mixed":
        raise UsageError(
            "train.strategy=fsdp does not scale gradients, which half precision needs",
            hint="train.precision=bf16, or 32 where the GPU has no bf16",
        )
    if size == 1:
        return World(Fabric(accelerator=device.type, devices=1, precision=precision))
    if train.batch_size != "auto" and train.batch_size % size:
        raise UsageError(
            f"train.batch_size={train.batch_size} cannot be divided among {size} processes",
            hint=f"a multiple of {size}: train.batch_size is that of all processes together",
        )
    if device.type == "cuda" and torch.cuda.device_count() < train.devices:
        raise UsageError(
            f"train.devices={train.devices}, and this machine has {torch.cuda.device_count()} GPUs",
            hint="train.devices is the number on each machine",
        )
    strategy: DDPStrategy | ModelParallelStrategy
    if train.strategy == "fsdp":
        strategy = ModelParallelStrategy(
            lambda model, mesh: model, data_parallel_size=size, tensor_parallel_size=1
        )  # dividing is done before the optimiser is built: `World.divide`
    else:
        strategy = _ddp(config)
    fabric = Fabric(
        accelerator=device.type,
        devices=train.devices,
        num_nodes=train.num_nodes,
        precision=precision,
        strategy=strategy,
    )
    fabric.launch()
    return World(fabric)


def _ddp(config: RunConfig) -> DDPStrategy:
    # which prompts a batch holds decides which parameters take part
    searches = getattr(config.model_settings, "prompts", "none") != "none"
    return DDPStrategy(find_unused_parameters=searches)
