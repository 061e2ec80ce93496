"""Volumes from fit to prediction: slices put together, scored whole, written where they came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

import segtune
from segtune.data.open import open_data
from segtune.engine.evaluate import evaluate_samples
from segtune.engine.fit import fit
from segtune.engine.infer import Inference
from segtune.engine.predict import Prediction
from segtune.engine.reporter import Reporter
from segtune.engine.run import LoadedRun, load_run
from segtune.engine.session import predict_run
from segtune.engine.volumes import combine
from segtune.errors import SegtuneError, UsageError
from tests.support import make_config
from tests.volumes import head, make_brats, make_msd, save


class Notes(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, *lines: str) -> None:
        self.lines += lines


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def msd(tmp_path_factory) -> Path:
    return make_msd(tmp_path_factory.mktemp("msd"), 6)


@pytest.fixture(scope="module")
def msd_run(msd, cache, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "msd"
    settings: dict[str, Any] = {
        "data__volume__crop": "16,12",
        "data__volume__slices": "tumour",
        "data__volume__cache": str(cache),
        "data__crop": None,
        "train__monitor": "volume_dice",
    }
    fit(make_config(msd, method="scratch", **settings), run)
    return run


@pytest.fixture(scope="module")
def brats(tmp_path_factory) -> Path:
    return make_brats(tmp_path_factory.mktemp("brats"), 5, names=("T1", "FLAIR"), values=(1, 4))


@pytest.fixture(scope="module")
def brats_run(brats, cache, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "brats"
    settings: dict[str, Any] = {
        "data__volume__crop": "brain",
        "data__volume__labels": "regions",
        "data__volume__modalities": "separate",
        "data__volume__cache": str(cache),
    }
    fit(make_config(brats, method="scratch", **settings), run)
    return run


class Oracle(torch.nn.Module):
    """Says what a threshold on the first channel says: a prediction that is known from the image alone."""

    num_classes = 2
    prompted: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, images: torch.Tensor, **_: Any) -> Any:
        logit = (images[:, :1] - 0.8) * 1000 + 0 * self.weight
        return type("Out", (), {"logits": torch.cat([-logit, logit], dim=1)})


def test_every_slice_of_a_case_is_scored(msd, cache, msd_run):
    """The scores are those of volumes put together by hand, of slices that training never used."""
    config = make_config(
        msd, data__volume__cache=str(cache), data__volume__slices="max-area", data__volume__crop="16,12"
    )
    index = open_data(msd, config.data)
    inference = Inference(Oracle(), load_settings(msd_run))
    part = [sample for sample in index.split("train") if sample.trained]
    assert len(part) == 4
    result = evaluate_samples(inference, index, part, config.data, split="train", batch_size=4)
    assert result.num_images == 24
    for case, scores in result.volumes.items():
        image = index.reader.unpacker.scan(index.reader.cases[case].first, None)
        mask = np.asarray(nibabel.load(index.reader.cases[case].label).dataobj)
        assert mask.sum() == index.reader.truth(case).sum()
        predicted = np.zeros(image.shape, np.uint8)
        for sample in (s for s in index.samples if s.case == case):
            seen = index.reader.image(sample)[..., 0] > 0.8
            predicted[sample.slice.position] = index.reader.put_back(case, seen.astype(np.uint8))
        true = index.reader.truth(case) == 1
        want = 2 * (predicted & true).sum() / (predicted.sum() + true.sum())
        assert scores["volume_dice"]["class_1"] == pytest.approx(want)
    for batch_size in (1, 5):
        again = evaluate_samples(inference, index, part, config.data, split="train", batch_size=batch_size)
        assert again.volumes == result.volumes
        assert again.confusion == result.confusion


def load_settings(run: Path) -> Any:
    from segtune.engine.infer import InferenceSettings

    return InferenceSettings.from_dict(load_run(run).description.inference)


def test_the_result_has_scores_of_volumes(msd_run):
    import json

    result = json.loads((msd_run / "result.json").read_text())
    assert {"volume_dice", "volume_hd95", "volume_surface_dice"} <= result["test"]["scores"].keys()
    assert list(result["test"]["volumes"]) == list(result["test"]["per_image"])
    assert len(result["test"]["volumes"]) == 1


def test_evaluate_repeats_the_scores_of_the_run(msd_run):
    import json

    result = json.loads((msd_run / "result.json").read_text())
    again = segtune.evaluate(msd_run, split="test", batch_size=3)
    assert again.volumes == result["test"]["volumes"]
    assert again.scores["volume_dice"] == result["test"]["scores"]["volume_dice"]


def test_predictions_lie_where_the_volumes_lie_and_score_the_same(msd, msd_run, tmp_path):
    evaluation = segtune.evaluate(msd_run, split="test")
    made = segtune.predict(msd_run, msd / "imagesTr", out=tmp_path / "out", batch_size=4)
    assert [prediction.mask.name for prediction in made] == [f"case_{n:02d}.nii.gz" for n in range(6)]
    for prediction in made:
        mask, source = nibabel.load(prediction.mask), nibabel.load(prediction.image)
        assert mask.shape == source.shape
        assert np.array_equal(mask.affine, source.affine)
        assert mask.get_data_dtype() == np.uint8
        assert prediction.overlay is not None and prediction.overlay.is_file()
    (case,) = evaluation.volumes
    predicted = np.asarray(nibabel.load(tmp_path / "out" / f"{case}.nii.gz").dataobj)
    true = np.asarray(nibabel.load(msd / "labelsTr" / f"{case}.nii.gz").dataobj)
    both = ((predicted == 1) & (true == 1)).sum()
    want = 2 * both / ((predicted == 1).sum() + (true == 1).sum())
    assert evaluation.volumes[case]["volume_dice"]["class_1"] == pytest.approx(want)


def test_one_file_is_predicted_like_the_folder(msd, msd_run, tmp_path):
    (alone,) = segtune.predict(
        msd_run, msd / "imagesTr" / "case_03.nii.gz", out=tmp_path / "one", overlays=False
    )
    segtune.predict(msd_run, msd, out=tmp_path / "all", overlays=False)
    assert alone.mask.read_bytes() == (tmp_path / "all" / "case_03.nii.gz").read_bytes()
    assert alone.overlay is None


def test_separate_modalities_are_combined(brats, brats_run, tmp_path):
    made = segtune.predict(brats_run, brats, out=tmp_path / "out", batch_size=7)
    assert len(made) == 5
    stored = np.unique(np.asarray(nibabel.load(made[0].mask).dataobj))
    assert set(stored.tolist()) <= {0, 1, 2, 3}
    mean = segtune.evaluate(brats_run, split="test")
    majority = segtune.evaluate(brats_run, split="test", settings={"data.volume.combination": "majority"})
    assert list(mean.volumes) == list(majority.volumes)
    (case,) = mean.volumes
    assert list(mean.volumes[case]["volume_dice"]) == ["whole tumour", "tumour core", "enhancing tumour"]
    one = segtune.predict(
        brats_run, brats / case, out=tmp_path / "one", settings={"data.volume.combination": "majority"}
    )
    assert [prediction.mask.name for prediction in one] == [f"{case}.nii.gz"]


def test_another_data_set_gets_the_crop_of_training(brats, brats_run, tmp_path):
    other = tmp_path / "other"
    for patient in sorted(brats.iterdir())[:3]:
        for file in patient.iterdir():
            image = nibabel.load(file)
            wide = np.pad(np.asarray(image.dataobj), ((4, 4), (4, 4), (0, 0)), mode="edge")
            save(other / patient.name / file.name, wide, image.affine)
    recipe = load_settings(brats_run).volume
    evaluation = segtune.evaluate(brats_run, data=other, split="train")
    assert tuple(evaluation.settings["volume"]["crop"]) == recipe.crop
    assert len(evaluation.volumes) == 1


def test_an_adapter_folder_knows_how_volumes_are_read(brats, brats_run):
    whole = segtune.evaluate(brats_run, split="test")
    alone = segtune.evaluate(brats_run / "adapter", data=brats, split="test")
    assert alone.volumes == whole.volumes


def test_what_cannot_be_predicted_is_left_out(msd_run, tmp_path):
    image, _ = head(1)
    save(tmp_path / "in" / "good.nii.gz", image)
    image[2, 2, 2] = np.inf
    save(tmp_path / "in" / "bad.nii.gz", image)
    notes = Notes()
    made = run_predict(msd_run, tmp_path / "in", tmp_path / "out", notes)
    assert [prediction.mask.name for prediction in made] == ["good.nii.gz"]
    assert any("left out: bad" in line for line in notes.lines)
    with pytest.raises(SegtuneError, match="none of the 1 volumes can be predicted: bad"):
        run_predict(msd_run, tmp_path / "in" / "bad.nii.gz", tmp_path / "out", notes)


def run_predict(run: Path, path: Path, out: Path, reporter: Reporter) -> list[Prediction]:
    return list(predict_run(run, [path], out, overlays=False, settings={}, reporter=reporter))


def test_refusals(msd, msd_run, brats, brats_run, tmp_path):
    with pytest.raises(UsageError, match="would replace a volume"):
        segtune.predict(msd_run, msd / "imagesTr", out=msd / "imagesTr")
    with pytest.raises(UsageError, match="no NIfTI volume"):
        segtune.predict(msd_run, Path(__file__), out=tmp_path)
    with pytest.raises(UsageError, match="there is no volume in"):
        segtune.predict(brats_run, tmp_path, out=tmp_path)
    with pytest.raises(UsageError, match="several volumes are called case_00"):
        volume = msd / "imagesTr" / "case_00.nii.gz"
        segtune.predict(msd_run, [volume, volume], out=tmp_path)
    with pytest.raises(SegtuneError, match="case_00: no t1, flair"):
        segtune.predict(brats_run, msd / "imagesTr" / "case_00.nii.gz", out=tmp_path)


def test_a_score_of_volumes_cannot_be_monitored_on_images(tiny_data, tmp_path):
    with pytest.raises(UsageError, match="volume_dice is a score of volumes"):
        fit(make_config(tiny_data, train__monitor="volume_dice"), tmp_path / "run")


def test_workers_read_the_same_slices(msd, msd_run, cache, tmp_path):
    settings = {"data__volume__cache": str(cache), "data__workers": 2, "data__crop": None}
    config = make_config(
        msd,
        method="scratch",
        **{"data__volume__crop": "16,12", "data__volume__slices": "tumour", "train__monitor": "volume_dice"},
        **settings,
    )
    fit(config, tmp_path / "workers")
    first, second = (load_run(path) for path in (msd_run, tmp_path / "workers"))
    assert same_tensors(first, second)


def same_tensors(first: LoadedRun, second: LoadedRun) -> bool:
    states = [run.tunable.model.state_dict() for run in (first, second)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_combinations():
    def maps(*firsts: float) -> torch.Tensor:
        return torch.tensor([[[[p]], [[1 - p]]] for p in firsts])

    assert combine(maps(0.9, 0.45, 0.45), "mean").item() == 0
    assert combine(maps(0.9, 0.45, 0.45), "majority").item() == 1
    assert combine(maps(0.9, 0.2), "majority").item() == 0  # one vote each: the surer one
    assert combine(maps(0.7, 0.2), "majority").item() == 1
