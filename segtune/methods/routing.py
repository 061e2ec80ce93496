"""Mixtures of experts: which of them a map goes to, and the sum of what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

GateForm = Literal["released", "switch"]
RunExpert = Callable[[int, Tensor], Tensor]
"""Number of an expert and maps [b, r, h, w] to maps of the same shape; b may be 0."""

NOISE_FLOOR = 1e-2
"""Smallest standard deviation of the noise: the probability of a choice is divided by it."""


@dataclass(frozen=True)
class Routing:
    """Where each map goes."""

    experts: Tensor
    """int64 [B, k]."""
    gates: Tensor
    """Weight of each of them, [B, k]."""
    penalty: Tensor | None
    """Balance loss, a scalar; None outside of training."""
    entropy: Tensor
    """Entropy in nats of the experts' shares of the maps, from 0 (one has all) to ln E (all have as many)."""


class Gate(nn.Module):
    """Noisy top-k gate on a map's channel means.

    Args:
        rank: r, channels of the maps.
        num_experts: E, at least 2.
        top_k: k, experts for each map, at most E.
        form: "released": softmax over the k that are kept, which is 1 for k = 1; "switch": softmax over
            all E, so that the gate learns from the task for k = 1 too.

    Source:
        Shazeer et al., Outrageously Large Neural Networks, 2017, sections 2.1 and 4 and appendix A; Fedus et
        al., Switch Transformers, 2021, section 2.1.
    """

    def __init__(self, rank: int, num_experts: int, top_k: int, form: GateForm) -> None:
        super().__init__()
        self.top_k = top_k
        self.form = form
        self.gate = nn.Parameter(torch.zeros(rank, num_experts))  # W_g
        self.noise = nn.Parameter(torch.zeros(rank, num_experts))  # W_noise

    def forward(self, maps: Tensor) -> Routing:
        """Maps [B, r, h, w] to their routing; with noise and a balance loss in training."""
        pooled = maps.mean((2, 3))  # [B, r]
        clean = pooled @ self.gate  # [B, E]
        num_experts = clean.shape[1]
        logits = clean
        if self.training:
            deviation = F.softplus(pooled @ self.noise) + NOISE_FLOOR
            logits = clean + torch.randn_like(clean) * deviation
        top, order = logits.topk(min(self.top_k + 1, num_experts), dim=1)
        experts = order[:, : self.top_k]
        if self.form == "released":
            gates = top[:, : self.top_k].softmax(dim=1)
        else:
            gates = logits.softmax(dim=1).gather(1, experts)
        chosen = torch.zeros_like(clean).scatter(1, experts, 1.0)  # [B, E]
        penalty = None
        if self.training:
            importance = spread(experts, gates, num_experts).sum(0)
            load = chosen if self.top_k == num_experts else self._chances(clean, logits, deviation, top)
            penalty = squared_variation(importance) + squared_variation(load.sum(0))
        entropy = torch.special.entr(chosen.mean(0) / self.top_k).sum().detach()
        return Routing(experts, gates, penalty, entropy)

    def _chances(self, clean: Tensor, logits: Tensor, deviation: Tensor, top: Tensor) -> Tensor:
        """Probability [B, E] that an expert is kept if only its own noise is drawn again."""
        # an expert stays in while it is above the best that is out, and gets in above the last that is in
        best_out, last_in = top[:, self.top_k, None], top[:, self.top_k - 1, None]
        threshold = torch.where(logits > best_out, best_out, last_in)
        chances: Tensor = torch.special.ndtr((clean - threshold) / deviation)
        return chances


def squared_variation(values: Tensor) -> Tensor:
    """Squared coefficient of variation of a vector (unbiased variance by squared mean)."""
    return values.var() / (values.mean().square() + 1e-10)


def spread(experts: Tensor, gates: Tensor, num_experts: int) -> Tensor:
    """Gates [B, k] of the experts kept to gates [B, E] of all, 0 for the others."""
    return gates.new_zeros(len(gates), num_experts).scatter(1, experts, gates)


def mix(maps: Tensor, routing: Routing, run: RunExpert, num_experts: int) -> Tensor:
    """Gated sum of the experts that each map goes to.

    Only those run, except where the program is compiled: a compiled program has the same shapes
    whatever the routing.

    Args:
        maps: [B, r, h, w].
        routing: of these maps.
        run: the experts.
        num_experts: E.

    Returns:
        [B, r, h, w].
    """
    mixture = _mix_all if torch.compiler.is_compiling() else _mix_chosen
    return mixture(maps, routing, run, num_experts)


def _mix_chosen(maps: Tensor, routing: Routing, run: RunExpert, num_experts: int) -> Tensor:
    top_k = routing.experts.shape[1]
    assigned = routing.experts.flatten()  # [B k]
    order = assigned.argsort(stable=True)
    parts = torch.split(maps[order // top_k], _counts(assigned, num_experts))
    outputs = torch.cat([run(index, part) for index, part in enumerate(parts) if len(part)])
    # put back by the inverse permutation: unlike adding at an index, it is deterministic on every device
    outputs = outputs[order.argsort()].view(-1, top_k, *maps.shape[1:])  # [B, k, r, h, w]
    return torch.sum(outputs * routing.gates[..., None, None, None], dim=1)


def _counts(assigned: Tensor, num_experts: int) -> list[int]:
    """How many maps each expert gets; equally many where tensors have no values (memory estimate)."""
    if assigned.is_meta or isinstance(assigned, FakeTensor):
        share, rest = divmod(len(assigned), num_experts)
        return [share + (index < rest) for index in range(num_experts)]
    counts: list[int] = assigned.bincount(minlength=num_experts).tolist()
    return counts


def _mix_all(maps: Tensor, routing: Routing, run: RunExpert, num_experts: int) -> Tensor:
    gates = spread(routing.experts, routing.gates, num_experts)
    total = torch.zeros_like(maps)
    for index in range(num_experts):
        total = total + run(index, maps) * gates[:, index, None, None, None]
    return total
