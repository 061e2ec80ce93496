"""Frozen weights in the type that autocast computes in: the same numbers, half the memory or less.

Under autocast a linear layer or a convolution rounds its weight to 16 bits at every call, and a copy of
each stays until the backward pass. Rounded once and for all, neither the 32 bits nor the copies are
needed. Only layers whose weight nobody changes or trains are taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segtune.engine.prompts import example_prompts
from segtune.methods.apply import Applied
from segtune.methods.attach import Adapted
from segtune.models.base import SegModel

TYPES = {"bf16": torch.bfloat16, "16": torch.float16}
"""What autocast computes in, by precision."""
WORTH = 16 * 2**20
"""Bytes of frozen weights below which nothing is gained."""
SIDE = 64
"""Height and width, in pixels, of the image that shows whether anything changed."""


def halve_frozen(applied: Applied, precision: str) -> list[tuple[nn.Parameter, Tensor]]:
    """Rounds the frozen weights of layers that autocast rounds anyway, if there are enough of them.

    Args:
        applied: the method on the model; what it owns stays as it is.
        precision: "32" (nothing is done), "bf16" or "16".

    Returns:
        The parameters that were rounded, with their tensors of before.
    """
    if precision not in TYPES:
        return []
    found = [
        parameter
        for layer in applied.model.modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) and not is_read(layer)
        for parameter in layer.parameters(recurse=False)
        if parameter not in applied.host.owned and parameter.dtype == torch.float32
    ]
    found = list(dict.fromkeys(found))  # layers may share one
    if sum(parameter.numel() * parameter.element_size() for parameter in found) < WORTH:
        return []
    changed = [(parameter, parameter.data) for parameter in found]
    for parameter in found:
        parameter.data = parameter.data.to(TYPES[precision])
    return changed


def is_read(layer: nn.Module) -> bool:
    """Whether an operation computes with the layer's weight in a way of its own."""
    return isinstance(layer, Adapted) and any(
        operation.changes_weight or operation.replaces_call for operation in layer.operations()
    )


@torch.no_grad()
def halve_if_equal(model: SegModel, applied: Applied, precision: str) -> bool:
    """`halve_frozen`, taken back where a single bit of the output changes.

    A network may ask for a weight's type, or use a weight where autocast does not round.

    Args:
        model: in any mode; left in eval mode.
        applied: the method on it.
        precision: "32", "bf16" or "16".

    Returns:
        Whether weights are rounded now.
    """
    if precision not in TYPES:
        return False
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, model.input_spec.channels, SIDE, SIDE, generator=generator)
    image = image.to(device, memory_format=torch.channels_last)
    prompts = example_prompts(model, image)
    model.eval()
    with torch.autocast(device.type, dtype=TYPES[precision]):
        expected = model(image, prompts=prompts).logits
        changed = halve_frozen(applied, precision)
        try:
            equal = torch.equal(model(image, prompts=prompts).logits, expected)
        except RuntimeError:  # two types where one is needed
            equal = False
    if not equal:
        for parameter, before in changed:
            parameter.data = before
    return equal and bool(changed)
