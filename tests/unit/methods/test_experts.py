"""Experts against their definition, on every scale, resizing and grid."""

from __future__ import annotations

import copy
import math
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F

from segtune.methods import experts
from segtune.methods.experts import Expert, Experts, choose_route, expert_plain, num_expert_parameters

GRIDS = [(1, 1), (1, 7), (2, 3), (5, 5), (14, 14), (7, 16), (64, 64)]
INTERPOLATIONS = ["bicubic", "bilinear"]


def tensors(grid: tuple[int, int], dtype: torch.dtype, *, kernel_size: int = 3, rank: int = 3):
    """Maps, kernels and bias, as large as a convolution's start."""
    generator = torch.Generator().manual_seed(sum(grid))
    bound = 1 / math.sqrt(rank * kernel_size**2)

    def uniform(*shape: int) -> torch.Tensor:
        drawn = torch.rand(*shape, generator=generator, dtype=torch.float64)
        return ((2 * drawn - 1) * bound).to(dtype).requires_grad_()

    maps = torch.randn(2, rank, *grid, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return maps, uniform(rank, rank, kernel_size, kernel_size), uniform(rank)


def largest_differences(expert: Expert, inputs, *, gelu: bool) -> list[float]:
    """Of the output and of the gradients of maps, kernel and bias, for a mean of squares as loss."""
    got = expert(*inputs)
    expected = expert_plain(*inputs, expert.scale, expert.interpolation, gelu=gelu)
    pairs = [(got, expected)]
    gradients = (torch.autograd.grad(y.square().mean(), inputs) for y in (got, expected))
    pairs += zip(*gradients, strict=True)
    return [(one - other).abs().max().item() for one, other in pairs]


@pytest.mark.parametrize("gelu", [True, False])
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("scale", range(1, 9))
def test_output_and_gradients_are_those_of_the_definition(scale, interpolation, gelu):
    expert = Expert(scale, interpolation, 3, gelu=gelu)
    for grid in GRIDS:
        assert max(largest_differences(expert, tensors(grid, torch.float32), gelu=gelu)) < 1e-4, grid
    expert.double()
    for grid in GRIDS:
        assert max(largest_differences(expert, tensors(grid, torch.float64), gelu=gelu)) < 1e-10, grid


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("scale", "kernel_size"), [(2, 1), (3, 1), (5, 5), (6, 5), (8, 5), (9, 7), (1, 5), (4, 5)]
)
def test_other_kernel_sizes(scale, kernel_size, interpolation):
    expert = Expert(scale, interpolation, kernel_size, gelu=True).double()
    for grid in GRIDS[:-1]:
        inputs = tensors(grid, torch.float64, kernel_size=kernel_size)
        assert max(largest_differences(expert, inputs, gelu=True)) < 1e-10, grid


@pytest.mark.parametrize("rank", [1, 8])
def test_other_ranks(rank):
    expert = Expert(6, "bicubic", 3, gelu=True).double()
    assert max(largest_differences(expert, tensors((5, 9), torch.float64, rank=rank), gelu=True)) < 1e-10


def test_single_precision_is_closer_to_the_exact_value_than_the_definition_is():
    expert = Expert(7, "bicubic", 3, gelu=True)
    inputs = tensors((64, 64), torch.float32)
    exact = expert_plain(*(x.double() for x in inputs), 7, "bicubic", gelu=True)
    error = (expert(*inputs) - exact).abs().max()
    assert error < 2e-6
    assert error < (expert_plain(*inputs, 7, "bicubic", gelu=True) - exact).abs().max()


def test_the_large_map_is_built_only_where_its_edge_is_read():
    routes = {
        interpolation: [choose_route(scale, interpolation, 3) for scale in range(1, 9)]
        for interpolation in INTERPOLATIONS
    }
    phases = ["phases"] * 5
    assert routes["bicubic"] == ["large", "large", "phases", "ring", *phases[1:]]
    assert routes["bilinear"] == ["large", "large", "phases", *phases]


@pytest.mark.parametrize(("scale", "kernel_size"), [(3, 5), (4, 3), (4, 5), (5, 9), (6, 9)])
def test_the_outermost_ring_is_computed_by_itself(scale, kernel_size, monkeypatch):
    monkeypatch.setattr(experts, "RING_SIDE", 0)
    expert = Expert(scale, "bicubic", kernel_size, gelu=True).double()
    assert expert.route == "ring"
    large = Mock(wraps=expert._by_large)
    monkeypatch.setattr(expert, "_by_large", large)
    for grid in ((8, 8), (9, 12), (14, 14)):
        inputs = tensors(grid, torch.float64, kernel_size=kernel_size)
        assert max(largest_differences(expert, inputs, gelu=True)) < 1e-10, grid
    assert max(min(call.args[0].shape[-2:]) for call in large.call_args_list) < 8


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("scale", [3, 5])
def test_an_odd_scale_is_the_convolved_large_map_at_the_pixels_centres(scale, interpolation):
    maps, weight, bias = tensors((6, 4), torch.float64)
    large = F.interpolate(maps, (6 * scale, 4 * scale), mode=interpolation)
    centres = F.gelu(F.conv2d(large, weight, bias, padding=1))[..., scale // 2 :: scale, scale // 2 :: scale]
    assert torch.allclose(expert_plain(maps, weight, bias, scale, interpolation, gelu=True), centres)


def test_the_first_scale_resizes_nothing():
    maps, weight, bias = tensors((6, 4), torch.float32)
    expected = F.gelu(F.conv2d(maps, weight, bias, padding=1))
    assert torch.equal(Expert(1, "bicubic", 3, gelu=True)(maps, weight, bias), expected)


def test_constants_follow_the_module_and_are_no_state():
    experts = Experts(3, range(1, 9), [3] * 8, "bicubic", gelu=True)
    assert set(experts.state_dict()) == {"kernels", "bias"}
    assert not list(experts.buffers())
    copied = copy.deepcopy(experts).double()
    maps = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    for index in range(8):
        kernel = copied.kernels[:, 27 * index : 27 * (index + 1)].reshape(3, 3, 3, 3)
        bias = copied.bias[3 * index : 3 * (index + 1)]
        expected = expert_plain(maps, kernel, bias, index + 1, "bicubic", gelu=True)
        assert torch.allclose(copied.run(index, maps), expected, rtol=0, atol=1e-10)
    built = Experts(3, [3], [3], "bicubic", gelu=True).to("meta").to_empty(device="cpu")
    assert torch.equal(built.members[0].kernels, experts.members[2].kernels)


def test_no_maps_are_no_maps():
    experts = Experts(2, [1, 3, 4, 6], [3] * 4, "bicubic", gelu=True)
    for index in range(4):
        assert experts.run(index, torch.empty(0, 2, 5, 4)).shape == (0, 2, 5, 4)


def test_an_expert_that_does_not_run_has_a_gradient_of_zeros():
    experts = Experts(2, [1, 1], [1, 5], "bicubic", gelu=True)
    experts.run(1, torch.randn(1, 2, 4, 4)).sum().backward()
    assert torch.equal(experts.kernels.grad[:, :2], torch.zeros(2, 2))
    assert torch.equal(experts.bias.grad[:2], torch.zeros(2))
    assert (experts.kernels.grad[:, 2:] != 0).all()


def test_kernels_start_like_a_convolution_and_their_number_is_the_formula():
    experts = Experts(4, [1, 1], [1, 5], "bicubic", gelu=True)
    small, large = experts.kernels.split([4, 100], dim=1)
    assert 0.3 < small.abs().max() <= 1 / math.sqrt(4)
    assert 0.09 < large.abs().max() <= 1 / math.sqrt(100)
    assert sum(p.numel() for p in experts.parameters()) == num_expert_parameters(4, [1, 5]) == 424
