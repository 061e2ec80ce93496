"""Every mistake is answered with what, where and the fix, by its exit code, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Command
from tests.support import TINY, make_data, set_options, tree_hash

UNET = ["--model", "unet", "--method", "lora"]


def fails(segtune: Command, code: int, *arguments: str | Path, says: list[str], hint: bool = True) -> str:
    before = tree_hash(Path())
    done = segtune(*arguments)
    assert done.code == code, done.err
    assert done.out == ""
    for piece in says:
        assert piece in done.err, f"{piece}\nis not in\n{done.err}"
    if hint:
        assert "hint: " in done.err or "did you mean" in done.err, done.err
    assert tree_hash(Path()) == before, "something half-written stays"
    return done.err


# --- wrong usage: 2 ---------------------------------------------------------------------------


def test_unknown_commands_and_options(segtune: Command) -> None:
    fails(segtune, 2, "fitt", says=["there is no command 'fitt'; did you mean 'fit'?"])
    fails(segtune, 2, "xyz", says=["commands are fit, evaluate"], hint=False)
    fails(segtune, 2, "fit", "--modle", "unet", says=["No such option", "--modle", "--model"], hint=False)
    fails(segtune, 2, "list", "modles", says=["'modles' is not one of"], hint=False)
    fails(segtune, 2, "evaluate", says=["Missing argument 'RUN'"], hint=False)


def test_names(segtune: Command, data: Path) -> None:
    fails(
        segtune,
        2,
        "fit",
        data,
        "--model",
        "unett",
        "--method",
        "lora",
        says=["'unett'", "did you mean 'unet'?"],
    )
    fails(
        segtune,
        2,
        "fit",
        data,
        "--model",
        "unet",
        "--method",
        "lorra",
        says=["'lorra'", "did you mean 'lora'?"],
    )
    smp = ["--model", "smp:", "--method", "lora"]
    fails(segtune, 2, "fit", data, *smp, says=["family of models", "smp:..."], hint=False)
    fails(segtune, 2, "fit", data, says=["model.name is missing", "method.name is missing"], hint=False)
    fails(segtune, 2, "inspect", *UNET, says=["number of classes is missing", "--classes K"])
    fails(segtune, 2, "inspect", *UNET, "--classes", "1", says=["--classes"], hint=False)


def test_scores_and_losses_that_a_model_has_not(segtune: Command, data: Path, finished: Path) -> None:
    fails(segtune, 2, "evaluate", finished, "--saliency", says=["there are 3 classes", "data.values"])
    fails(segtune, 2, "attention", finished, data / "val", "--out", "o", says=["attends", "sam-vit-base"])
    fails(segtune, 2, "fit", data, *UNET, *set_options(TINY), "--set", "loss.name=set_matching",
          says=["loss.name=set_matching", "unet proposes none", "dice_cross_entropy"])  # fmt: skip


def test_settings(segtune: Command, data: Path) -> None:
    err = fails(
        segtune, 2, "fit", data, *UNET,
        *set_options({"method.rnk": 3, "train.batch_size": 0, "optim.name": "adamm", "dat.crop": 3}),
        says=["4 settings are wrong", "method.rnk = 3", "did you mean method.rank?", "train.batch_size = 0",
              "optim.name = 'adamm'", "did you mean data?", "(from --set)"],
    )  # fmt: skip
    assert "'adam', 'adamw' or 'sgd'" in err
    fails(segtune, 2, "fit", data, *UNET, "--set", "method.rank", says=["is not an assignment"])
    fails(segtune, 2, "fit", data, *UNET, "--set", "train.epochs=1", "--set", "train.steps=1",
          says=["exclude each other"], hint=False)  # fmt: skip


def test_settings_files(segtune: Command, data: Path, tmp_path: Path) -> None:
    fails(segtune, 2, "fit", data, *UNET, "--config", "no.yaml", says=["no.yaml", "No such file"])
    (tmp_path / "bad.yaml").write_text("train: [1\n")
    fails(
        segtune, 2, "fit", data, *UNET, "--config", tmp_path / "bad.yaml", says=["bad.yaml is not valid YAML"]
    )
    (tmp_path / "wrong.yaml").write_text("train: {batchsize: 3}\n")
    fails(segtune, 2, "fit", data, *UNET, "--config", tmp_path / "wrong.yaml",
          says=["train.batchsize = 3 (from wrong.yaml)", "did you mean train.batch_size?"])  # fmt: skip


def test_paths(segtune: Command, data: Path, finished: Path, tmp_path: Path) -> None:
    fails(segtune, 2, "fit", *UNET, says=["DATA is missing"])
    fails(segtune, 2, "fit", "nowhere", *UNET, says=["no data folder or manifest", "nowhere"])
    fails(segtune, 2, "fit", data, *UNET, "--out", finished, says=[str(finished), "is not empty", "--resume"])
    (tmp_path / "file").write_text("x")
    fails(segtune, 2, "fit", data, *UNET, "--out", tmp_path / "file", says=["is a file"])
    fails(
        segtune,
        2,
        "fit",
        data,
        *UNET,
        "--out",
        tmp_path / "new",
        "--resume",
        says=["not the folder of a run"],
    )
    fails(segtune, 2, "data", "check", "nowhere", says=["nowhere"])
    fails(segtune, 2, "inspect", *UNET, "--data", "nowhere", says=["nowhere", "--data"])
    fails(segtune, 2, "evaluate", "nowhere", says=["there is no run folder nowhere"])
    fails(segtune, 2, "evaluate", data, says=["is not the folder of a run"])
    fails(segtune, 2, "evaluate", finished, "--data", "nowhere", says=["nowhere", "--data"])
    fails(segtune, 2, "evaluate", finished, "--split", "tst", says=["'tst' is not one of"], hint=False)
    fails(segtune, 2, "predict", finished, "nowhere.png", "--out", "o", says=["nowhere.png"])
    fails(segtune, 2, "attention", finished, "nowhere.png", "--out", "o", says=["nowhere.png"])
    fails(segtune, 2, "attention", finished, data, "--out", tmp_path / "file", says=["is a file"])
    fails(segtune, 2, "predict", finished, data, says=["Missing option '--out'"], hint=False)
    fails(segtune, 2, "merge", finished, "--out", "model.pth", says=["is a .safetensors file"])
    (tmp_path / "m.safetensors").write_text("x")
    fails(segtune, 2, "merge", finished, "--out", tmp_path / "m.safetensors", says=["exists already"])


def test_settings_of_a_finished_run(segtune: Command, finished: Path) -> None:
    fails(segtune, 2, "evaluate", finished, "--set", "data.widnow=3", says=["did you mean data.window?"])
    fails(
        segtune, 2, "evaluate", finished, "--set", "data.window=big", says=["data.window = 'big'"], hint=False
    )
    fails(
        segtune, 2, "evaluate", finished, "--set", "method.rank=3", says=["only data.* settings"], hint=False
    )
    fails(segtune, 2, "evaluate", finished, "--set", "data=3", says=["data = 3"], hint=False)
    fails(segtune, 2, "predict", finished, finished, "--out", "o", "--set", "data.overlap=2",
          says=["data.overlap = 2"], hint=False)  # fmt: skip


def test_images_would_be_replaced(segtune: Command, finished: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "test" / "images", tmp_path / "images")
    fails(segtune, 2, "predict", finished, tmp_path / "images", "--out", tmp_path / "images",
          says=["would replace an image", "--out"])  # fmt: skip


# --- failed runs: 1 ---------------------------------------------------------------------------


def test_data_that_is_none(segtune: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    fails(
        segtune,
        1,
        "fit",
        tmp_path / "empty",
        *UNET,
        says=["no data set of a known kind", "images/ and masks"],
    )
    (tmp_path / "some").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "some" / "a.png")
    fails(segtune, 1, "data", "check", tmp_path / "some", says=["a.png"])
    (tmp_path / "x.txt").write_text("hello")
    fails(segtune, 1, "fit", tmp_path / "x.txt", *UNET, says=["x.txt"])


def test_weights(segtune: Command, data: Path, tmp_path: Path) -> None:
    out = ["--out", "run"]
    fails(segtune, 1, "fit", data, *UNET, *out, "--set", "model.weights=no.pth",
          says=["weights file 'no.pth' does not exist", "model.weights"])  # fmt: skip
    (tmp_path / "bad.pth").write_text("no weights")
    fails(segtune, 1, "fit", data, *UNET, *out, *set_options({**TINY, "model.weights": tmp_path / "bad.pth"}),
          says=["bad.pth"])  # fmt: skip


def test_no_place_to_attach_to(segtune: Command, data: Path) -> None:
    fails(segtune, 2, "fit", data, *UNET, "--out", "run",
          *set_options({**TINY, "method.kinds": "attention_qkv"}),
          says=["attention_qkv", "the model offers", "conv"])  # fmt: skip
    fails(segtune, 2, "inspect", *UNET, "--classes", "3", "--set", "method.include=nothing",
          says=["include", "names of such sites"])  # fmt: skip


def test_damaged_runs(segtune: Command, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    tensors = run / "adapter" / "adapter.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:100])
    for command in (["evaluate", run], ["merge", run, "--out", "m.safetensors"]):
        fails(segtune, 1, *command, says=["adapter.safetensors", "cannot be read"])
    tensors.write_bytes(content)
    description = run / "adapter" / "adapter.json"
    values = json.loads(description.read_text())
    description.write_text(json.dumps({**values, "base_fingerprint": "0" * 64}))
    fails(
        segtune,
        1,
        "evaluate",
        run,
        says=["was trained on another base", "0" * 16, values["base_fingerprint"][:16]],
    )
    description.write_text("{")
    fails(segtune, 1, "evaluate", run, says=["adapter.json is damaged"])
    shutil.rmtree(run / "adapter")
    fails(segtune, 1, "evaluate", run, says=["holds no adapter"])
    (run / "config.yaml").write_text("a: [")
    fails(segtune, 2, "evaluate", run, says=["config.yaml is not valid YAML"])
    fails(segtune, 2, "fit", "--out", run, "--resume", says=["config.yaml is not valid YAML"])


def test_other_classes_than_the_models(segtune: Command, finished: Path, tmp_path: Path) -> None:
    other = make_data(tmp_path / "other", classes=("a", "b", "c", "d"))
    fails(
        segtune, 1, "evaluate", finished, "--data", other, says=["4 classes", "the model 3", "dataset.yaml"]
    )


def test_a_split_that_is_not_there(segtune: Command, finished: Path, tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", num_test=0)
    fails(segtune, 1, "evaluate", finished, "--data", data, says=["no test images", "--split"])


def test_the_system_refuses(segtune: Command, data: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    inside = tmp_path / "file" / "run"
    says = ["error: the system refuses", str(tmp_path / "file")]
    fails(segtune, 1, "fit", data, *UNET, "--out", inside, *set_options(TINY), says=says)
    fails(segtune, 1, "predict", finished, data / "test" / "images", "--out", inside, says=says)
    fails(segtune, 1, "merge", finished, "--out", inside.with_suffix(".safetensors"), says=says)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(segtune: Command, data: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    fails(segtune, 1, "fit", data, *UNET, "--out", tmp_path / "closed" / "run", *set_options(TINY),
          says=["the system refuses", "Permission denied"])  # fmt: skip


def test_interrupted(segtune: Command, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import segtune.engine.fit as module

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fit", interrupt)
    done = segtune("fit", data, *UNET, *set_options(TINY))
    assert done.code == 1
    assert "--resume" in done.err
