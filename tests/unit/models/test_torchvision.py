from collections import Counter

import pytest
import torch
import torchvision.models as library

from segtune.errors import TrainingError, WeightsError
from segtune.models import MODELS
from segtune.models.build import build_model
from segtune.models.sites import probe_access
from segtune.models.torchvision import TorchvisionModelSettings
from segtune.models.weights import load_weights
from segtune.types import Access, Part, SiteKind

NAMES = [name for name in MODELS if name in library.list_models(library.segmentation)]
LIGHT = ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]
DEEPLAB = "deeplabv3_mobilenet_v3_large"


def original(name, num_classes, **options):
    torch.manual_seed(7)
    return library.get_model(name, weights=None, weights_backbone=None, num_classes=num_classes, **options)


def site_counts(model):
    return {kind.value: count for kind, count in Counter(s.kind for s in model.sites()).items()}


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("size", [(1, 1), (33, 70), (64, 64)])
def test_logits_have_the_size_of_the_images(name, size):
    model = build_model(name, 4).eval()
    output = model(torch.rand(1, 3, *size))
    assert output.logits.shape == (1, 4, *size)
    assert output.auxiliary == {}


@pytest.mark.parametrize("size", [(1, 1), (33, 40)])
def test_auxiliary_logits_while_training(size):
    output = build_model(DEEPLAB, 4)(torch.rand(2, 3, *size))
    assert {name: logits.shape for name, logits in output.auxiliary.items()} == {"aux": (2, 4, *size)}
    assert build_model(LIGHT[1], 4)(torch.rand(2, 3, *size)).auxiliary == {}


@pytest.mark.parametrize("name", [*LIGHT, "deeplabv3_resnet50", "fcn_resnet50"])
def test_same_output_and_same_keys_as_torchvision(name):
    theirs = original(name, 3, **({} if name.startswith("lraspp") else {"aux_loss": True})).eval()
    ours = build_model(name, 3).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, 45, 66)
    with torch.no_grad():
        expected = theirs((images - ours.mean) / ours.std)
        assert torch.equal(ours(images).logits, expected["out"])
        if "aux" in expected:
            features = ours.encode(images)
            auxiliary = ours._fit(ours.auxiliary_maps(features.maps)["aux"], features, None)
            assert torch.equal(auxiliary, expected["aux"])


@pytest.mark.parametrize("name", NAMES)
def test_sites(name):
    model = build_model(name, 3, meta=True)
    expected = {
        "deeplabv3_resnet50": {"conv": 61, "norm": 61, "stage": 4, "block": 16, "head": 2},
        "deeplabv3_resnet101": {"conv": 112, "norm": 112, "stage": 4, "block": 33, "head": 2},
        "deeplabv3_mobilenet_v3_large": {"conv": 70, "norm": 54, "block": 17, "head": 2},
        "fcn_resnet50": {"conv": 55, "norm": 55, "stage": 4, "block": 16, "head": 2},
        "lraspp_mobilenet_v3_large": {"conv": 64, "norm": 47, "block": 17, "head": 2},
    }
    assert site_counts(model) == expected[name]
    sites = model.sites()
    assert set(probe_access(model, sites).values()) == {Access.CALL}
    blocks = [s.block for s in sites if s.kind is SiteKind.BLOCK]
    assert blocks == list(range(len(blocks)))
    assert {s.name for s in sites if s.kind is SiteKind.HEAD} == set(model.head_names())
    assert {s.part for s in sites if s.name.startswith("backbone.")} == {Part.ENCODER}
    assert {s.part for s in sites if s.block is not None} == {Part.ENCODER}
    assert {s.channel_axis for s in sites} == {1}


def test_only_the_last_convolutions_depend_on_the_number_of_classes():
    for name in NAMES:
        two, five = (build_model(name, count, meta=True) for count in (2, 5))
        left, right = two.state_dict(), five.state_dict()
        assert {key for key in left if left[key].shape != right[key].shape} == two.head_keys(), name


@pytest.mark.parametrize("name", NAMES)
def test_published_weights_are_those_of_torchvision(name):
    published = build_model(name, 2, meta=True).published()
    assert list(published) == ["coco", "imagenet"]
    default = library.get_model_weights(name).DEFAULT
    assert published["coco"].url == default.url
    for entry in published.values():
        assert f"-{entry.sha256}." in entry.filename
        assert len(entry.sha256) == 8
    assert [entry.covers for entry in published.values()] == ["model", "encoder"]


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("num_classes", [21, 4])
def test_a_torchvision_checkpoint_loads_unchanged(tmp_path, name, num_classes):
    theirs = original(name, 21, **({} if name.startswith("lraspp") else {"aux_loss": True}))
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    model = build_model(name, num_classes)
    report = load_weights(model, str(tmp_path / "coco.pth"))
    assert report.kept_head is (num_classes == 21)
    head = set() if num_classes == 21 else model.head_keys()
    for key, value in theirs.state_dict().items():
        assert key in head or torch.equal(model.state_dict()[key], value)


def test_without_the_auxiliary_classifier(tmp_path):
    torch.save(original(DEEPLAB, 3, aux_loss=True).state_dict(), tmp_path / "full.pth")
    model = build_model(DEEPLAB, 3, TorchvisionModelSettings(auxiliary=False))
    assert model.head_names() == ("classifier.4",)
    assert load_weights(model, str(tmp_path / "full.pth")).kept_head
    assert model(torch.rand(2, 3, 32, 32)).auxiliary == {}


@pytest.mark.parametrize(("name", "backbone"), [
    (DEEPLAB, "mobilenet_v3_large"), (LIGHT[1], "mobilenet_v3_large"), ("fcn_resnet50", "resnet50"),
])  # fmt: skip
def test_a_classification_checkpoint_fills_the_backbone(tmp_path, name, backbone):
    torch.save(library.get_model(backbone, weights=None).state_dict(), tmp_path / "imagenet.pth")
    model = build_model(name, 3)
    report = load_weights(model, str(tmp_path / "imagenet.pth"))
    assert "encoder alone" in report.lines[1]


def test_another_network_is_refused(tmp_path):
    torch.save(original(LIGHT[1], 3).state_dict(), tmp_path / "lraspp.pth")
    with pytest.raises(WeightsError, match="do not fit the model"):
        load_weights(build_model(DEEPLAB, 3), str(tmp_path / "lraspp.pth"))


def test_one_image_while_training_is_refused_unless_the_norm_is_frozen():
    model = build_model(DEEPLAB, 3)
    with pytest.raises(TrainingError, match="batch of one image"):
        model(torch.rand(1, 3, 64, 64))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert model(torch.rand(1, 3, 64, 64)).logits.shape == (1, 3, 64, 64)
    assert build_model(LIGHT[1], 3)(torch.rand(1, 3, 32, 32)).logits.shape == (1, 3, 32, 32)
