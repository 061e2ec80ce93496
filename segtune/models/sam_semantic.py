"""SAM's mask decoder for several classes: N mask tokens, one hyper-network, a class for each token.

Each token proposes one mask and says which of the K classes it is of, or none (models/proposals.py says
how these become logits).

Source
    Conv-LoRA (Zhong et al., 2024), section 3.3 and figure 4: shared hyper-network, K + 1 classes.
    There the tokens are trained by set matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segtune.types import Proposals

_PREFERENCE = 5.0
"""Logit at the start of a token's own class: a probability of 0.97 among four classes."""


class TokenClassifier(nn.Module):
    """Mask tokens to classes: a layer that all tokens share, and what each prefers from the start.

    Token n starts with a preference for class n mod K. Where all tokens give a class the same
    probability, no mask gets a gradient from the summed probabilities. Three tiny networks with random
    weights, each trained for 120 steps with cross entropy on one scene of four classes, still called
    every pixel the same (0.50 of them right); with the preference 0.74, 0.84 and 1.00 were right.

    Args:
        width: D, channels of a token.
        num_tokens: N.
        num_classes: K.
    """

    def __init__(self, width: int, num_tokens: int, num_classes: int) -> None:
        super().__init__()
        self.shared = nn.Linear(width, num_classes + 1)
        self.preferences = nn.Embedding(num_tokens, num_classes + 1)
        tokens = torch.arange(num_tokens)
        with torch.no_grad():
            self.preferences.weight.zero_()
            self.preferences.weight[tokens, tokens % num_classes] = _PREFERENCE

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, D] to class logits [B, N, K + 1], the last for "no object"."""
        logits: Tensor = self.shared(tokens)
        return logits + self.preferences.weight


def run_decoder(
    decoder: Any,
    tokens: Tensor,
    embeddings: Tensor,
    positions: Tensor,
    *,
    sparse: Tensor | None = None,
    fine: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Runs the mask decoder up to its hyper-networks, with any mask tokens.

    Args:
        decoder: transformers' SamMaskDecoder or Sam2MaskDecoder.
        tokens: mask tokens [N, D].
        embeddings: of the image, with the prompt's dense part added, [B, D, h, w].
        positions: positional encoding [1, D, h, w].
        sparse: tokens of the prompts of P objects, [B, P, T, D]; None: one object without any.
        fine: of SAM 2, what is added after the second and the first upscaling: [B, D / 8, 4 h, 4 w] and
            [B, D / 4, 2 h, 2 w].

    Returns:
        The mask tokens [B, P, N, D], and the upscaled image [B, P, D / 8, 4 h, 4 w].
    """
    batch, channels, height, width = embeddings.shape
    num_objects = 1 if sparse is None else sparse.shape[1]
    first = [decoder.iou_token.weight]
    if hasattr(decoder, "obj_score_token"):
        first.insert(0, decoder.obj_score_token.weight)
    queries = torch.cat([*first, tokens]).expand(batch, num_objects, -1, -1)
    if sparse is not None:
        queries = torch.cat([queries, sparse], dim=2)
    found, image = decoder.transformer(
        point_embeddings=queries,
        image_embeddings=embeddings.repeat_interleave(num_objects, dim=0),
        image_positional_embeddings=positions.expand(batch * num_objects, -1, -1, -1),
        attention_similarity=None,
    )
    found = found[:, :, len(first) : len(first) + len(tokens)]  # [B, P, N, D]
    image = image[:, 0].transpose(1, 2).reshape(-1, channels, height, width)  # [B P, D, h, w]
    image = decoder.upscale_conv1(image)
    if fine:
        image = image + fine[1].repeat_interleave(num_objects, dim=0)
    image = decoder.upscale_conv2(decoder.activation(decoder.upscale_layer_norm(image)))
    if fine:
        image = image + fine[0].repeat_interleave(num_objects, dim=0)
    return found, decoder.activation(image).unflatten(0, (batch, num_objects))


def first_masks(decoder: Any, tokens: Tensor, image: Tensor) -> Tensor:
    """Masks by the first hyper-network.

    Args:
        decoder: as for `run_decoder`.
        tokens: [B, N, D].
        image: upscaled, [B, D / 8, H, W].

    Returns:
        Mask logits [B, N, H, W].
    """
    weights: Tensor = decoder.output_hypernetworks_mlps[0](tokens)  # [B, N, D / 8]
    return (weights @ image.flatten(2)).reshape(*weights.shape[:2], *image.shape[2:])


def propose(
    decoder: Any,
    tokens: Tensor,
    classifier: nn.Module,
    embeddings: Tensor,
    positions: Tensor,
    *,
    sparse: Tensor | None = None,
    fine: Sequence[Tensor] = (),
) -> Proposals:
    """Runs the mask decoder with other mask tokens than its own.

    Args:
        decoder: as for `run_decoder`.
        tokens: mask tokens [N, D].
        classifier: a `TokenClassifier` of these tokens.
        embeddings: of the image, with the prompt's dense part added, [B, D, h, w].
        positions: positional encoding [1, D, h, w].
        sparse: tokens that say there is no prompt, [B, 1, T, D], of SAM 2.
        fine: as for `run_decoder`.

    Returns:
        N proposals, their masks at four times the resolution of the embeddings.
    """
    found, image = run_decoder(decoder, tokens, embeddings, positions, sparse=sparse, fine=fine)
    masks = first_masks(decoder, found[:, 0], image[:, 0])
    return Proposals(class_logits=classifier(found[:, 0]), mask_logits=masks)


def fit_tokens(state: dict[str, Tensor], tokens: nn.Embedding | None) -> dict[str, Tensor]:
    """A file's tensors for a model with so many class tokens, or with none.

    Args:
        state: under the model's names; may come from a model for another number of classes.
        tokens: the model's class tokens; None where it has no classifier.

    Returns:
        Where the file has none that fit, class tokens that start as the published mask token plus noise.
    """
    if tokens is None:
        return {k: v for k, v in state.items() if not k.startswith(("class_tokens.", "classifier."))}
    own = tokens.weight.detach()  # [N, D]
    found = state.get("class_tokens.weight")
    published = state.get("mask_decoder.mask_tokens.weight")  # [4, D]
    if published is None or (found is not None and found.shape == own.shape):
        return state
    return {**state, "class_tokens.weight": published[:1] + own * published.std()}
