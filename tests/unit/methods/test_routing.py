"""The gate and the mixture against slow references."""

from __future__ import annotations

import math

import pytest
import torch

from segtune.methods.experts import Experts
from segtune.methods.routing import Gate, Routing, _mix_all, _mix_chosen, mix, squared_variation

RANK, EXPERTS = 3, 5


def make_gate(top_k: int, form: str = "released") -> Gate:
    torch.manual_seed(0)
    gate = Gate(RANK, EXPERTS, top_k, form)
    torch.nn.init.normal_(gate.gate)
    torch.nn.init.normal_(gate.noise)
    return gate


def maps(batch: int = 6) -> torch.Tensor:
    return torch.randn(batch, RANK, 4, 6, generator=torch.Generator().manual_seed(1))


def slow_penalty(gate: Gate, x: torch.Tensor, noise: torch.Tensor) -> float:
    """Balance loss of the released gate, one map and one expert at a time."""
    importance, load = [0.0] * EXPERTS, [0.0] * EXPERTS
    for b in range(len(x)):
        pooled = [x[b, c].mean().item() for c in range(RANK)]
        clean = [sum(pooled[c] * gate.gate[c, e].item() for c in range(RANK)) for e in range(EXPERTS)]
        raw = [sum(pooled[c] * gate.noise[c, e].item() for c in range(RANK)) for e in range(EXPERTS)]
        deviation = [math.log1p(math.exp(value)) + 0.01 for value in raw]
        noisy = [clean[e] + noise[b, e].item() * deviation[e] for e in range(EXPERTS)]
        kept = sorted(range(EXPERTS), key=lambda e: -noisy[e])[: gate.top_k]
        total = sum(math.exp(noisy[e]) for e in kept)
        for e in range(EXPERTS):
            if e in kept:
                importance[e] += math.exp(noisy[e]) / total
            # the k-th largest of the others: what this expert has to exceed
            threshold = sorted((noisy[o] for o in range(EXPERTS) if o != e), reverse=True)[gate.top_k - 1]
            load[e] += 0.5 * (1 + math.erf((clean[e] - threshold) / deviation[e] / math.sqrt(2)))
    return sum(slow_variation(values) for values in (importance, load))


def slow_variation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((v - mean) ** 2 for v in values) / (len(values) - 1) / mean**2


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_balance_loss_is_that_of_a_slow_reference(top_k):
    gate = make_gate(top_k).train()
    torch.manual_seed(7)
    penalty = gate(maps()).penalty
    torch.manual_seed(7)
    noise = torch.randn(6, EXPERTS)
    assert penalty.ndim == 0
    assert penalty.item() == pytest.approx(slow_penalty(gate, maps(), noise), rel=1e-4)


def test_the_balance_loss_teaches_the_gate():
    for top_k in (1, 2, EXPERTS):
        gate = make_gate(top_k).train()
        gate(maps()).penalty.backward()
        for parameter in gate.parameters():
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().sum() > 0


def test_an_even_load_costs_nothing():
    assert squared_variation(torch.tensor([2.0, 2.0, 2.0])) == 0
    assert squared_variation(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(3.0)
    assert squared_variation(torch.zeros(3)) == 0


def test_noise_and_balance_loss_are_those_of_training_alone():
    gate = make_gate(1).eval()
    first, second = gate(maps()), gate(maps())
    assert torch.equal(first.experts, second.experts) and first.penalty is None
    expected = (maps().mean((2, 3)) @ gate.gate).argmax(1)
    assert torch.equal(first.experts[:, 0], expected)
    gate.train()
    assert any(not torch.equal(gate(maps()).experts[:, 0], expected) for _ in range(20))


def test_the_released_gate_of_one_expert_is_one_and_has_no_gradient_from_the_task():
    gate = make_gate(1).eval()
    gates = gate(maps()).gates
    assert torch.equal(gates, torch.ones(6, 1))
    (gradient,) = torch.autograd.grad(gates.square().sum(), gate.gate)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_the_switch_gate_is_the_probability_and_learns_from_the_task():
    gate = make_gate(1, "switch").eval()
    gates = gate(maps()).gates
    assert torch.allclose(gates[:, 0], (maps().mean((2, 3)) @ gate.gate).softmax(1).max(1).values)
    (gradient,) = torch.autograd.grad(gates.square().sum(), gate.gate)
    assert gradient.abs().sum() > 0


def test_kept_gates_are_the_softmax_over_those_kept():
    gate = make_gate(2).eval()
    routing = gate(maps())
    logits = maps().mean((2, 3)) @ gate.gate
    for b in range(6):
        best = logits[b].topk(2)
        assert torch.equal(routing.experts[b], best.indices)
        assert torch.allclose(routing.gates[b], best.values.softmax(0))


def test_the_entropy_is_that_of_the_shares():
    gate = Gate(RANK, EXPERTS, 1, "released").eval()
    with torch.no_grad():
        gate.gate.copy_(torch.eye(RANK, EXPERTS))
    x = torch.zeros(4, RANK, 2, 2)
    x[0, 0] = x[1, 1] = x[2, 2] = x[3, 2] = 1.0
    assert gate(x).entropy.item() == pytest.approx(1.5 * math.log(2))
    assert gate(x[2:]).entropy.item() == 0
    assert not gate(x).entropy.requires_grad


@pytest.mark.parametrize("top_k", [1, 3])
def test_the_mixture_is_the_gated_sum_one_map_at_a_time(top_k):
    torch.manual_seed(0)
    experts = Experts(RANK, range(1, EXPERTS + 1), [3] * EXPERTS, "bicubic", gelu=True).double()
    gate = make_gate(top_k, "switch").double().eval()
    x = maps(7).double().requires_grad_()
    routing = gate(x)
    expected = torch.stack(
        [
            sum(
                routing.gates[b, j] * experts.run(int(routing.experts[b, j]), x[b : b + 1])[0]
                for j in range(top_k)
            )
            for b in range(7)
        ]
    )
    wanted = [x, *experts.parameters(), gate.gate]
    expected_gradients = torch.autograd.grad(expected.square().sum(), wanted)
    for mixture in (_mix_chosen, _mix_all, mix):
        got = mixture(x, gate(x), experts.run, EXPERTS)
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)
        gradients = torch.autograd.grad(got.square().sum(), wanted)
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-10)


def test_only_experts_that_were_chosen_run():
    routing = Routing(torch.tensor([[3], [1], [3]]), torch.ones(3, 1), None, torch.zeros(()))
    ran = {}

    def run(index, part):
        ran[index] = len(part)
        return part * index

    x = torch.ones(3, 1, 2, 2)
    assert mix(x, routing, run, EXPERTS)[:, 0, 0, 0].tolist() == [3.0, 1.0, 3.0]
    assert ran == {1: 1, 3: 2}


def test_large_values_stay_finite_and_exact():
    routing = Routing(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]), None, torch.zeros(()))
    for dtype, value in ((torch.float16, 2e4), (torch.bfloat16, 1e30), (torch.float32, 1e30)):
        x = torch.full((1, 1, 2, 2), value, dtype=dtype)
        weighted = Routing(routing.experts, routing.gates.to(dtype), None, routing.entropy)
        assert torch.equal(mix(x, weighted, lambda _index, part: part, 2), x)
