import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from segtune.models import MODELS
from segtune.models.base import SegModel
from segtune.models.build import build_model
from segtune.models.sites import probe_access, scan_sites, trace
from segtune.models.unet import UNetSettings
from segtune.types import Access, InputSpec, Part, SiteKind


class ChannelLastBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.fc(self.norm(x))


class Mixed(SegModel):
    """Registered out of order, with a layer read through its weight and one that nobody uses."""

    def __init__(self):
        super().__init__(2, InputSpec(minimum=8))
        self.head = nn.Conv2d(8, 2, 1)
        self.out_proj = nn.Linear(8, 8)
        self.unused = nn.Conv2d(8, 8, 1)
        self.blocks = nn.ModuleList([ChannelLastBlock(), ChannelLastBlock()])
        self.stem = nn.Conv2d(3, 8, 1)
        self.frozen_norm = nn.BatchNorm2d(8, affine=False)
        self.deaf = nn.Conv2d(8, 8, 1)

    def encode_maps(self, images):
        x = self.frozen_norm(self.stem(images)).permute(0, 2, 3, 1)
        self.deaf(x.permute(0, 3, 1, 2))
        for block in self.blocks:
            x = block(x)
        return F.linear(x, self.out_proj.weight, self.out_proj.bias).permute(0, 3, 1, 2)

    def decode_maps(self, maps, padded):
        return self.head(maps)

    def head_names(self):
        return ("head",)

    def scan(self, traced):
        return scan_sites(
            self,
            part=lambda name: Part.ENCODER,
            head=self.head_names(),
            blocks=("blocks.0", "blocks.1"),
            linear_kind=lambda name: SiteKind.MLP if name.endswith(".fc") else SiteKind.LINEAR,
            traced=traced,
        )

    def sites(self):
        return self.scan(trace(self))


def test_a_traced_scan_is_in_order_of_use_and_leaves_out_what_is_not_used():
    sites = Mixed().sites()
    assert [(s.name, s.kind.value, s.access.value, s.channel_axis, s.block) for s in sites] == [
        ("out_proj", "linear", "weight", -1, None),
        ("stem", "conv", "call", 1, None),
        ("blocks.0", "block", "call", -1, 0),
        ("blocks.0.norm", "norm", "call", -1, 0),
        ("blocks.0.fc", "mlp", "call", -1, 0),
        ("blocks.1", "block", "call", -1, 1),
        ("blocks.1.norm", "norm", "call", -1, 1),
        ("blocks.1.fc", "mlp", "call", -1, 1),
        ("head", "head", "call", 1, None),
    ]
    assert sites[-1].part is Part.HEAD


def test_the_probe_tells_what_a_plain_scan_cannot_know():
    model = Mixed()
    access = probe_access(model, model.scan(None))
    assert access["out_proj"] is Access.WEIGHT
    assert access["unused"] == access["deaf"] == "unused"
    assert access["blocks.0.fc"] is Access.CALL


def test_tracing_leaves_the_model_as_it_was():
    model = Mixed()
    model.blocks[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trace(model)
    assert [model.training, model.blocks[0].training, model.blocks[1].training] == [True, False, True]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and not p.is_meta for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_copied_model_has_sites_of_its_own():
    model = build_model("unet", 2, UNetSettings(width=2, depth=1))
    twin = copy.deepcopy(model)
    for site in twin.sites():
        assert site.module is twin.get_submodule(site.name)
        assert site.module is not model.get_submodule(site.name)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("unet", {"depth": 2, "width": 4}),
        ("unet", {"depth": 1, "width": 4, "up": "bilinear"}),
        ("deeplabv3_resnet50", {}),
        ("deeplabv3_mobilenet_v3_large", {}),
        ("lraspp_mobilenet_v3_large", {}),
        ("smp:segformer/mit_b0", {}),
    ],
)
def test_a_site_says_how_many_channels_come_out(name, settings):
    model = build_model(name, 3, MODELS.settings(name)(**settings))
    shapes = trace(model).shapes
    for site in model.sites():
        if site.name in shapes:
            assert site.channels == shapes[site.name][site.channel_axis], site.name
