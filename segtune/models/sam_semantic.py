"""SAM's mask decoder for several classes: N mask tokens, one hyper-network, a class for each token.

Each token proposes one mask and says which of the K classes it is of, or none (models/proposals.py says
how these become logits).

Source
    Conv-LoRA (Zhong et al., 2024), section 3.3 and figure 4: shared hyper-network, K + 1 classes.
    There the tokens are trained by set matching.
"""

from __future__ import annotations

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


def propose(
    decoder: Any, tokens: Tensor, classifier: nn.Module, embeddings: Tensor, positions: Tensor
) -> Proposals:
    """Runs the mask decoder with other mask tokens than its own.

    Args:
        decoder: transformers' SamMaskDecoder.
        tokens: mask tokens [N, D].
        classifier: a `TokenClassifier` of these tokens.
        embeddings: of the image, with the prompt's dense part added, [B, D, h, w].
        positions: positional encoding [1, D, h, w].

    Returns:
        N proposals, their masks at four times the resolution of the embeddings.
    """
    batch, channels, height, width = embeddings.shape
    queries = torch.cat([decoder.iou_token.weight, tokens])  # [1 + N, D]
    found, image = decoder.transformer(
        point_embeddings=queries.expand(batch, 1, -1, -1),
        image_embeddings=embeddings,
        image_positional_embeddings=positions.expand(batch, -1, -1, -1),
        attention_similarity=None,
    )
    found = found[:, 0, 1:]  # [B, N, D]
    image = image[:, 0].transpose(1, 2).reshape(batch, channels, height, width)
    image = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
    image = decoder.activation(decoder.upscale_conv2(image))  # [B, D / 8, 4 h, 4 w]
    weights = decoder.output_hypernetworks_mlps[0](found)  # [B, N, D / 8]
    masks = (weights @ image.flatten(2)).unflatten(2, image.shape[2:])
    return Proposals(class_logits=classifier(found), mask_logits=masks)
