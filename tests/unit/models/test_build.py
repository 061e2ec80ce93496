import pytest
import torch

from segtune.errors import UnknownNameError, UsageError
from segtune.models.build import build_model
from segtune.models.unet import UNetSettings

TINY = UNetSettings(width=4, depth=1)


def test_the_seed_alone_decides_the_weights():
    first, again, other = (build_model("unet", 2, TINY, seed=seed) for seed in (1, 1, 2))
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.head.weight, other.head.weight)


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    build_model("unet", 2, TINY, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_meta_takes_no_memory():
    model = build_model("unet", 2, meta=True)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    assert len(model.sites()) == len(build_model("unet", 2, UNetSettings(width=2)).sites())


def test_one_class_is_refused():
    with pytest.raises(UsageError, match="at least 2 classes, not 1"):
        build_model("unet", 1)


def test_unknown_model_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'deeplabv3_resnet50'"):
        build_model("deeplabv3_resnet5", 2)
