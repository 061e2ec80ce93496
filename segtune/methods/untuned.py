"""Trains nothing, whatever the classifier: the score before tuning.

What it changes
    Nothing.

Where it attaches
    Nowhere.

Parameters
    None.

When to use it
    As the first row of a table: where tuning starts from. Unlike `zero-shot` it also takes a model whose
    classifier for these classes is new, and so answers at random; what tuning adds is then measured from
    chance. A run of it takes no step and leaves the same folder as any other.
"""

from __future__ import annotations

from segtune.methods.zero_shot import ZeroShot, ZeroShotSettings


class UntunedSettings(ZeroShotSettings):
    """Settings of `base`: there is nothing to choose."""


class Untuned(ZeroShot):
    """The model before tuning."""

    takes_random = True
