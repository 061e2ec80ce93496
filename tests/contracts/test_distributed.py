"""Every method in two processes: under DistributedDataParallel without a search for unused parameters, and
with the model divided between them."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from segtune.engine.shards import Shards, gathered, load_optimizer
from tests.contracts.table import (
    ALL_METHODS,
    images,
    logits,
    loss_of,
    make_applied,
    make_model,
    masks,
    model_for,
)

METHODS = [*ALL_METHODS, "lora+norm+bitfit", "peft:loha"]
MODEL = "unet-bilinear"  # group norm: its statistics do not depend on how a batch is split
DEPENDS_ON_SPLIT = {"conv-lora", "conv-lora:inception"}
"""Methods whose noise and balance loss are those of each process's own part of the batch."""


SAME_PLACES = {"rslora", "lora-plus", "lora-fa", "pissa", "conv-lora:inception", "conv-lora:multi-scale"}
"""Methods that attach as another one does."""
DIVIDED = [
    *(
        (model_for(method.partition("+")[0], MODEL), method)
        for method in METHODS
        if method not in SAME_PLACES
    ),
    *(("sam", method) for method in ("lora", "vpt", "lst", "sam-adapter", "full")),
    ("deeplabv3", "full"),
]


def _train_divided(rank: int, model_name: str, method: str) -> dict[str, Any]:
    """Two steps with the model divided; the tuned tensors and the optimiser's state, put together."""
    model = make_model(model_name)
    applied = make_applied(model, method)
    model.train()
    shards = Shards(applied, init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(applied.parameters().values(), lr=0.01)
    half = slice(2 * rank, 2 * rank + 2)
    for step in range(2):
        model.zero_grad()
        loss_of(model, images(4)[half], masks(4)[half]).backward()
        shards.average_gradients()
        if step == 0:
            optimizer.step()
            state = gathered(optimizer.state_dict())
            load_optimizer(optimizer, state)
            again = gathered(optimizer.state_dict())
    with shards.whole():
        tensors = {name: tensor.clone() for name, tensor in applied.state_dict().items()}
        model.eval()
        alone = logits(model, images(1 + rank))  # without the other process
    model.train()
    return {
        "trained_too": shards.trained_too,
        "gradients": {name: gathered(p.grad) for name, p in applied.parameters().items()},
        "tensors": tensors,
        "num_images": len(alone),
        "reloads": all(
            torch.equal(value, again["state"][number][name])
            for number, values in state["state"].items()
            for name, value in values.items()
        ),
        "divided": sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)),
    }


def _worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    gradients = {}
    for method in METHODS:
        model = make_model(model_for(method.partition("+")[0], MODEL))
        applied = make_applied(model, method)
        model.train()
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # a parameter without gradient fails at the second step
            model.zero_grad()
            half = slice(2 * rank, 2 * rank + 2)
            loss_of(parallel, images(4)[half], masks(4)[half]).backward()
        gradients[method] = {name: p.grad for name, p in applied.parameters().items()}
    torch.save(gradients, Path(folder) / f"gradients{rank}.pt")
    divided = {f"{model}-{method}": _train_divided(rank, model, method) for model, method in DIVIDED}
    torch.save(divided, Path(folder) / f"divided{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, args=(port, str(folder)), nprocs=2)
    return folder


@pytest.fixture(scope="module")
def distributed_gradients(finished):
    return [torch.load(finished / f"gradients{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def divided(finished):
    return [torch.load(finished / f"divided{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("method", METHODS)
def test_every_process_has_the_same_gradients(distributed_gradients, method):
    first, second = (gradients[method] for gradients in distributed_gradients)
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name


@pytest.mark.parametrize("method", [name for name in METHODS if name not in DEPENDS_ON_SPLIT])
def test_gradients_equal_those_of_one_process(distributed_gradients, method):
    model = make_model(model_for(method.partition("+")[0], MODEL))
    applied = make_applied(model, method)
    model.train()
    loss_of(model, images(4), masks(4)).backward()
    for name, parameter in applied.parameters().items():
        got = distributed_gradients[0][method][name]
        assert torch.allclose(got, parameter.grad, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize(("model_name", "method"), DIVIDED)
def test_a_divided_model_trains_as_a_whole_one(divided, model_name, method):
    first, second = (results[f"{model_name}-{method}"] for results in divided)
    assert first["trained_too"] == (method in ("full", "scratch"))
    assert first["reloads"], "the optimiser's state, put together and divided again"
    assert (first["num_images"], second["num_images"]) == (1, 2)
    model = make_model(model_name)
    applied = make_applied(model, method)
    frozen = sum(p.numel() for p in model.parameters()) - (
        0 if first["trained_too"] else sum(p.numel() for p in applied.parameters().values())
    )
    assert first["divided"] + second["divided"] == frozen and first["divided"] < 0.7 * frozen
    for name, tensor in first["tensors"].items():
        assert torch.equal(tensor, second["tensors"][name]), name
    if method in DEPENDS_ON_SPLIT or model_name == "deeplabv3":  # batch norm sees halves of the batch
        return
    model.train()
    optimizer = torch.optim.AdamW(applied.parameters().values(), lr=0.01)
    for step in range(2):
        model.zero_grad()
        loss_of(model, images(4), masks(4)).backward()
        if step == 0:
            optimizer.step()
    largest = max(p.grad.abs().max() for p in applied.parameters().values())
    for name, parameter in applied.parameters().items():
        assert torch.allclose(first["gradients"][name], parameter.grad, rtol=0.05, atol=1e-3 * largest), name
