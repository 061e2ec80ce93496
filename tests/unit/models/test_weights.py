import hashlib
import io
import os
import pickle
import urllib.error
import urllib.request

import pytest
import torch
from safetensors.torch import save_file

from segtune.errors import UnknownNameError, WeightsError
from segtune.models.base import PublishedWeights
from segtune.models.build import build_model
from segtune.models.unet import UNetSettings
from segtune.models.weights import fingerprint, load_weights


def build(num_classes=2, seed=0, **settings):
    return build_model("unet", num_classes, UNetSettings(**{"width": 4, "depth": 1, **settings}), seed=seed)


def same(left, right, *, but=()):
    return all(torch.equal(left[key], right[key]) for key in left if key not in but)


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture
def other():
    return build(seed=1)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("was-run",)


# --- names ------------------------------------------------------------------------------------------


def test_none_keeps_the_random_weights():
    model = build()
    before = snapshot(model)
    report = load_weights(model, "none")
    assert (report.source, report.path, report.sha256, report.kept_head) == ("none", None, None, False)
    assert same(before, model.state_dict())


def test_default_of_a_model_without_published_weights_is_random_and_says_so():
    report = load_weights(build(), "default")
    assert report.source == "none"
    assert report.lines == ("random weights: no published weights exist for this model",)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'default'"):
        load_weights(build(), "defualt")


@pytest.mark.parametrize("name", ["missing.pth", "folder/missing"])
def test_missing_file(name):
    with pytest.raises(WeightsError, match="does not exist"):
        load_weights(build(), name)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(WeightsError, match="is a folder without model"):
        load_weights(build(), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)]
)
def test_a_folder_as_transformers_saves_one(tmp_path, other, name, save):
    save(other.state_dict(), tmp_path / name)
    model = build()
    report = load_weights(model, str(tmp_path))
    assert same(other.state_dict(), model.state_dict())
    assert report.path == tmp_path / name


# --- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model": {"state_dict": state}, "optimizer": {"lr": 0.1}},
    lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
    lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
])  # fmt: skip
def test_checkpoints_of_every_layout(tmp_path, other, wrap):
    path = tmp_path / "weights.pth"
    torch.save(wrap(other.state_dict()), path)
    model = build()
    report = load_weights(model, str(path))
    assert same(other.state_dict(), model.state_dict())
    assert report.kept_head
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_safetensors_with_metadata(tmp_path, other):
    path = tmp_path / "weights.safetensors"
    save_file(other.state_dict(), path, metadata={"classes": '["sky", "road"]'})
    model = build()
    report = load_weights(model, str(path))
    assert same(other.state_dict(), model.state_dict())
    assert report.metadata == {"classes": '["sky", "road"]'}


def test_a_head_for_other_classes_is_left_out(tmp_path):
    path = tmp_path / "weights.pt"
    five = build(num_classes=5, seed=1)
    torch.save(five.state_dict(), path)
    model = build()
    head = snapshot(model)
    report = load_weights(model, str(path))
    assert not report.kept_head
    assert report.lines[1] == "classifier: new for 2 classes (the file's is for 5 classes)"
    assert same(five.state_dict(), model.state_dict(), but=model.head_keys())
    assert all(torch.equal(model.state_dict()[key], head[key]) for key in model.head_keys())


def test_an_encoder_alone(tmp_path, other):
    path = tmp_path / "encoder.pt"
    torch.save({k: v for k, v in other.state_dict().items() if k.startswith("encoder.")}, path)
    model = build()
    report = load_weights(model, str(path))
    assert torch.equal(model.encoder[0].conv1.weight, other.encoder[0].conv1.weight)
    assert not torch.equal(model.decoder[0].up.weight, other.decoder[0].up.weight)
    assert "encoder alone" in report.lines[1]


def test_counters_of_batch_norm_may_be_missing(tmp_path, other):
    path = tmp_path / "old.pth"
    torch.save({k: v for k, v in other.state_dict().items() if "num_batches" not in k}, path)
    load_weights(build(), str(path))


@pytest.mark.parametrize("settings", [{"depth": 2}, {"width": 8}, {"norm": "none"}, {"up": "bilinear"}])
def test_another_architecture_is_refused_and_nothing_is_copied(tmp_path, settings):
    path = tmp_path / "weights.pth"
    torch.save(build(seed=1, **settings).state_dict(), path)
    model = build()
    before = snapshot(model)
    with pytest.raises(WeightsError, match="do not fit the model"):
        load_weights(model, str(path))
    assert same(before, model.state_dict())


def test_the_message_names_keys_shapes_and_the_nearest(tmp_path, other):
    path = tmp_path / "weights.pth"
    state = {k.replace("conv1", "conv_1"): v for k, v in other.state_dict().items()}
    state["encoder.0.conv2.weight"] = torch.zeros(4, 4, 5, 5)
    torch.save(state, path)
    with pytest.raises(WeightsError) as caught:
        load_weights(build(), str(path))
    text = str(caught.value)
    assert "encoder.0.conv_1.weight (the model has encoder.0.conv1.weight)" in text
    assert "encoder.0.conv2.weight (file (4, 4, 5, 5), model (4, 4, 3, 3))" in text


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch, other):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": other.state_dict(), "evil": Runs()}, "zipped.pth")
    (tmp_path / "protocol2.pth").write_bytes(pickle.dumps({"evil": Runs()}, protocol=2))
    (tmp_path / "protocol4.pth").write_bytes(pickle.dumps({"evil": Runs()}, protocol=4))
    for name in ("zipped.pth", "./protocol2.pth", "protocol4.pth"):
        with pytest.raises(WeightsError, match="would run code") as caught:
            load_weights(build(), name)
        assert "safetensors" in caught.value.hint
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.99])
def test_a_truncated_file_is_refused(tmp_path, other, ending, share):
    path = tmp_path / f"weights.{ending}"
    (torch.save if ending == "pth" else save_file)(other.state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    model = build()
    before = snapshot(model)
    with pytest.raises(WeightsError, match="damaged or cut off"):
        load_weights(model, str(path))
    assert same(before, model.state_dict())


def test_garbage_pointers_and_other_contents(tmp_path):
    cases = {
        "page.pth": (b"<!DOCTYPE html><html>", "damaged or cut off"),
        "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git-lfs pointer"),
        "weights.txt": (b"", r"\.txt is not a weights file"),
    }
    for name, (content, message) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=message):
            load_weights(build(), str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"state_dict": {"step": 3}}, tmp_path / "number.pth")
    for name, message in (("list.pth", "holds a list"), ("number.pth", "'step' is not a tensor but a int")):
        with pytest.raises(WeightsError, match=message):
            load_weights(build(), str(tmp_path / name))


# --- downloads --------------------------------------------------------------------------------------


class Answer(io.BytesIO):
    def __init__(self, content, headers):
        super().__init__(content)
        self.headers = headers


@pytest.fixture
def publish(tmp_path, monkeypatch, other):
    """Publishes `other` at an address that answers from memory; returns the model and its cache."""
    monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path / "cache"))
    torch.save(other.state_dict(), tmp_path / "source.pth")
    content = (tmp_path / "source.pth").read_bytes()

    prefix = hashlib.sha256(content).hexdigest()[:8]

    def prepare(*, sha256=prefix, error=None, headers=None):
        requests = []

        def answer(_self, request, timeout):
            requests.append((request.full_url, timeout))
            if error is not None:
                raise error
            return Answer(content, {"Content-Length": str(len(content)), **(headers or {})})

        monkeypatch.setattr(urllib.request.OpenerDirector, "open", answer)
        model = build()
        entry = PublishedWeights(url="https://example.org/unet.pth", filename="unet.pth", sha256=sha256)
        monkeypatch.setattr(model, "published", lambda: {"day": entry})
        return model, tmp_path / "cache", requests

    prepare.content = content
    return prepare


@pytest.mark.parametrize("name", ["default", "day"])
def test_download_once_then_from_the_cache(publish, other, name):
    model, cache, requests = publish()
    report = load_weights(model, name)
    assert (report.source, report.path) == ("day", cache / "unet.pth")
    assert same(other.state_dict(), model.state_dict())
    load_weights(model, name)
    assert [url for url, _ in requests] == ["https://example.org/unet.pth"]
    assert [file.name for file in cache.iterdir()] == ["unet.pth"]


def test_download_with_a_wrong_hash_leaves_nothing(publish):
    model, cache, _ = publish(sha256="00000000")
    before = snapshot(model)
    with pytest.raises(WeightsError, match="published is 00000000"):
        load_weights(model, "day")
    assert list(cache.iterdir()) == []
    assert same(before, model.state_dict())


def test_the_servers_own_hash_is_checked_where_none_is_published(publish):
    digest = hashlib.sha256(publish.content).hexdigest()
    model, _, _ = publish(sha256="", headers={"X-Linked-Etag": f'"{digest}"'})
    assert load_weights(model, "day").sha256 == digest
    for file in (model_cache := publish(sha256="")[1]).iterdir():
        file.unlink()
    for headers in ({"X-Linked-Etag": f'"{"0" * 64}"'}, {}):
        model, _, _ = publish(sha256="", headers=headers)
        with pytest.raises(WeightsError, match="published is"):
            load_weights(model, "day")
    assert list(model_cache.iterdir()) == []


def test_cached_file_with_a_wrong_hash_is_refused(publish):
    model, cache, requests = publish()
    cache.mkdir()
    (cache / "unet.pth").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="not what was published") as caught:
        load_weights(model, "day")
    assert "delete it" in caught.value.hint
    assert requests == []
    assert (cache / "unet.pth").read_bytes() == b"something else"


@pytest.mark.parametrize("error", [
    urllib.error.URLError("no route to host"), TimeoutError("timed out"), ConnectionResetError("reset"),
])  # fmt: skip
def test_offline_says_which_file_to_put_where(publish, error):
    model, cache, _ = publish(error=error)
    with pytest.raises(WeightsError, match=r"unet\.pth are not in the cache") as caught:
        load_weights(model, "day")
    assert "https://example.org/unet.pth" in caught.value.hint
    assert str(cache) in caught.value.hint
    assert list(cache.iterdir()) == []


# --- fingerprint ------------------------------------------------------------------------------------


def test_fingerprint_tells_weights_apart():
    model = build()
    assert fingerprint(model) == fingerprint(build())
    assert fingerprint(model) != fingerprint(build(seed=1))
    assert fingerprint(model, model.head_keys()) == fingerprint(model, set(model.head_keys()))
    base = fingerprint(model, model.head_keys())
    with torch.no_grad():
        model.head.weight[0, 0] += 1
    assert fingerprint(model, model.head_keys()) == base
    with torch.no_grad():
        model.encoder[0].conv1.weight[0, 0, 0, 0] += 1e-6
    assert fingerprint(model, model.head_keys()) != base


def test_fingerprint_does_not_depend_on_the_memory_layout():
    model = build()
    before = fingerprint(model)
    assert fingerprint(model.to(memory_format=torch.channels_last)) == before
    assert fingerprint(model.to(torch.bfloat16)) != before
