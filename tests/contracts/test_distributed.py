"""Every method under DistributedDataParallel with two processes, without a search for unused parameters."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.contracts.table import ALL_METHODS, images, loss_of, make_applied, make_model, masks, model_for

METHODS = [*ALL_METHODS, "lora+norm+bitfit", "peft:loha"]
MODEL = "unet-bilinear"  # group norm: its statistics do not depend on how a batch is split
DEPENDS_ON_SPLIT = {"conv-lora", "conv-lora:inception"}
"""Methods whose noise and balance loss are those of each process's own part of the batch."""


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
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def distributed_gradients(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"gradients{rank}.pt", weights_only=True) for rank in (0, 1)]


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
