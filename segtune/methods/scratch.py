"""Trains every parameter of the network from random weights.

What it changes
    Everything; published weights are not loaded, whatever `model.weights` says.

Where it attaches
    Everywhere.

Parameters
    All of the network's.

When to use it
    As the baseline that shows what the pretrained weights are worth.
"""

from __future__ import annotations

from segtune.methods.full import Full, FullSettings


class ScratchSettings(FullSettings):
    """Settings of `scratch`."""


class Scratch(Full):
    """Training from scratch."""

    random_base = True
    learning_rate = 1e-3
