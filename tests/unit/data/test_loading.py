from __future__ import annotations

import os
import pickle
import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from segtune.data.base import Classes, DataIndex, Sample
from segtune.data.loading import LoadedSample, TrainDataset, collate, eval_loader, train_loader
from segtune.data.schedule import BatchSchedule, derive_seed, steps_per_epoch
from segtune.data.settings import DataSettings
from segtune.data.transforms import TrainTransform
from segtune.errors import DataError, MissingExtraError, SettingsError

pytestmark = [
    # Fewer processors than workers, and forking beside PyTorch's threads, are both meant here.
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

NUM_SAMPLES = 7
AUGMENTED = DataSettings(
    scale=(0.5, 2.0), vertical_flip=0.5, colour=0.5, rand_augment=2, rand_augment_magnitude=20
)


@dataclass
class MadeReader:
    """Pictures made from the sample's name; chosen ones are broken."""

    size: tuple[int, int] = (20, 26)
    broken: set[str] = field(default_factory=set)
    value: int = 0

    def image(self, sample):
        if sample.name in self.broken:
            raise DataError(f"{sample.image}: truncated", hint="copy the file again")
        rng = np.random.default_rng(int(sample.name))
        return rng.integers(256, size=(*self.size, 3), dtype=np.uint8)

    def mask(self, sample):
        rng = np.random.default_rng(int(sample.name) + 1000)
        return rng.integers(3, size=self.size, dtype=np.uint8) + np.uint8(self.value)


def made_index(num_samples=NUM_SAMPLES, **reader):
    samples = tuple(
        Sample(name=str(n), image=Path(f"images/{n}.png"), mask=Path(f"masks/{n}.png"), split="train")
        for n in range(num_samples)
    )
    classes = Classes(names=("a", "b", "c"), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)))
    made = MadeReader(**reader)
    return DataIndex(root=Path(), format="made", samples=samples, classes=classes, reader=made)


def batches(
    index=None, settings=AUGMENTED, *, batch_size=2, seed=5, start_step=0, num_steps=5, crop=(16, 16)
):
    loader = train_loader(
        index or made_index(),
        settings,
        batch_size=batch_size,
        seed=seed,
        start_step=start_step,
        num_steps=num_steps,
        crop=crop,
    )
    assert len(loader) == num_steps
    return list(loader)


def same(first, second):
    return (
        first.names == second.names
        and torch.equal(first.images, second.images)
        and torch.equal(first.masks, second.masks)
    )


def all_same(first, second):
    return len(first) == len(second) and all(map(same, first, second))


# --- the order of samples ------------------------------------------------------------------------


def schedule(num_samples=NUM_SAMPLES, batch_size=2, seed=0, **options):
    return BatchSchedule(num_samples, batch_size=batch_size, seed=seed, **options)


def test_each_epoch_is_a_new_order_without_its_incomplete_batch():
    steps = schedule(num_steps=9)
    assert steps.steps_per_epoch == 3 and len(steps) == 9
    keys = list(steps)
    assert [{epoch for epoch, _ in batch} for batch in keys] == [{0}] * 3 + [{1}] * 3 + [{2}] * 3
    epochs = [[position for batch in keys[e : e + 3] for _, position in batch] for e in (0, 3, 6)]
    assert all(len(set(order)) == 6 and set(order) < set(range(7)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3


def test_every_sample_has_its_turn():
    keys = [key for batch in schedule(num_steps=60) for key in batch]
    assert {position for _, position in keys} == set(range(NUM_SAMPLES))


def test_fewer_samples_than_a_batch_are_one_small_batch():
    steps = schedule(num_samples=3, batch_size=8, num_steps=2)
    assert steps.steps_per_epoch == steps_per_epoch(3, 8) == 1
    assert [sorted(position for _, position in batch) for batch in steps] == [[0, 1, 2]] * 2


@pytest.mark.parametrize("start", [0, 1, 3, 4, 17])
def test_schedule_starts_at_any_step(start):
    whole = list(schedule(num_steps=20))
    assert list(schedule(start_step=start, num_steps=20 - start)) == whole[start:]


def test_schedule_can_be_walked_twice_and_depends_on_the_seed():
    steps = schedule(num_steps=6)
    assert list(steps) == list(steps) == list(schedule(num_steps=6))
    assert list(steps) != list(schedule(num_steps=6, seed=1))


# --- samples as pure functions -------------------------------------------------------------------


def disturb_random_numbers(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def test_sample_is_a_function_of_seed_epoch_and_index_alone():
    index = made_index()
    transform = TrainTransform(AUGMENTED, crop=(16, 16), channels=3, ignore_index=255)
    images = {}
    for number, (seed, epoch, position) in enumerate(
        [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 10, 1), (0, 1, 1)] * 2
    ):
        disturb_random_numbers(number)
        got = TrainDataset(index, index.samples, transform, seed)[epoch, position]
        before = images.setdefault((seed, epoch, position), got.image)
        assert torch.equal(got.image, before)
    assert len({image.numpy().tobytes() for image in images.values()}) == len(images)


def test_seeds_differ_where_any_part_does():
    parts = [(0, 1, 11), (0, 11, 1), (0, 1, 1), (1, 0, 1)]
    assert len({derive_seed("sample", *p) for p in parts}) == len(parts)
    # Pinned: a run must be resumable by another version.
    assert derive_seed("order", 0, 0) == 1229295407


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(num_workers):
    settings = AUGMENTED.model_copy(update={"workers": num_workers})
    # Large enough that sums are split over threads in the main process.
    large = {"index": made_index(size=(300, 310)), "crop": (256, 256), "num_steps": 3}
    assert all_same(batches(settings=settings, **large), batches(**large))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_run_sees_the_same_batches(num_workers):
    settings = AUGMENTED.model_copy(update={"workers": num_workers})
    whole = batches(num_steps=8)
    assert all_same(batches(settings=settings, start_step=4, num_steps=4), whole[4:])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loaders_yield_the_same_when_walked_again(num_workers):
    settings = AUGMENTED.model_copy(update={"workers": num_workers})
    index = made_index()
    options = {"batch_size": 2, "seed": 5, "start_step": 0, "num_steps": 3, "crop": (16, 16)}
    training = train_loader(index, settings, **options)
    assert all_same(list(training), list(training))
    evaluation = eval_loader(index, index.samples, settings)
    first, second = list(evaluation), list(evaluation)
    assert all(torch.equal(a.image, b.image) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_random_numbers_and_threads_of_the_main_process_are_left_alone(monkeypatch, num_workers):
    main = os.getpid()

    def refuse(seed):
        assert os.getpid() != main, "the accelerator's generator was seeded"

    disturb_random_numbers(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    num_threads = torch.get_num_threads()
    settings = AUGMENTED.model_copy(update={"workers": num_workers})
    batches(settings=settings)
    list(eval_loader(made_index(), made_index().samples, settings))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]
    assert torch.get_num_threads() == num_threads


# --- batches -------------------------------------------------------------------------------------


def test_batch_has_the_shapes_of_the_contract():
    batch = batches()[0]
    assert batch.images.shape == (2, 3, 16, 16) and batch.images.dtype == torch.float32
    assert batch.masks.shape == (2, 16, 16) and batch.masks.dtype == torch.int64
    assert len(batch.names) == 2


def test_only_the_training_split_is_trained_on():
    index = made_index()
    index = index.with_samples(
        tuple(replace(s, split="val" if int(s.name) < 4 else "train") for s in index.samples)
    )
    assert {name for batch in batches(index) for name in batch.names} == {"4", "5", "6"}


def test_images_of_different_sizes_are_no_batch_and_say_what_to_set():
    samples = [
        LoadedSample(torch.zeros(3, *size), torch.zeros(size, dtype=torch.uint8), name)
        for name, size in (("a", (4, 5)), ("b", (4, 5)), ("c", (6, 5)))
    ]
    assert collate(samples[:2]).masks.shape == (2, 4, 5)
    with pytest.raises(DataError, match=r"b 4x5, c 6x5(.|\n)*data\.crop"):
        collate(samples)


# --- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_yields_whole_images_in_order(num_workers):
    index = made_index()
    chosen = index.samples[5:1:-1]
    settings = AUGMENTED.model_copy(update={"workers": num_workers, "resize": (8, 8)})
    got = list(eval_loader(index, chosen, settings))
    assert [sample.name for sample in got] == ["5", "4", "3", "2"]
    for (image, mask, *_), sample in zip(got, chosen, strict=True):
        assert image.dtype == torch.float32 and mask.dtype == torch.uint8
        assert np.array_equal((image.permute(1, 2, 0) * 255).round().byte(), index.reader.image(sample))
        assert np.array_equal(mask, index.reader.mask(sample))


# --- mistakes in the data ------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_file_is_named_with_its_hint(num_workers):
    index = made_index(broken={"3"})
    settings = AUGMENTED.model_copy(update={"workers": num_workers})
    for run in (
        lambda: batches(index, settings, num_steps=6),
        lambda: list(eval_loader(index, index.samples, settings)),
    ):
        with pytest.raises(DataError, match=r"3\.png: truncated\n  hint: copy the file again$"):
            run()


def test_batch_of_different_sizes_is_reported_from_a_worker(monkeypatch):
    index = made_index()

    def zeros(sample, *channels):
        return np.zeros((4 + int(sample.name), 5, *channels), dtype=np.uint8)

    monkeypatch.setattr(MadeReader, "image", lambda self, sample: zeros(sample, 3))
    monkeypatch.setattr(MadeReader, "mask", lambda self, sample: zeros(sample))
    for num_workers in (0, 1):
        with pytest.raises(DataError, match="different sizes"):
            batches(index, DataSettings(workers=num_workers), crop=None)


def test_image_and_mask_of_different_sizes(monkeypatch):
    monkeypatch.setattr(MadeReader, "mask", lambda self, s: np.zeros((4, 5), dtype=np.uint8))
    with pytest.raises(DataError, match=r"the image is 20x26 pixels, its mask .*png 4x5"):
        batches()


def test_mask_value_without_a_class_is_named():
    with pytest.raises(DataError, match=r"png: the mask holds the value 4\d, .* 3 classes"):
        batches(made_index(value=40))


def test_samples_without_masks_or_no_samples_at_all():
    index = made_index()
    bare = index.with_samples(tuple(replace(s, mask=None) if s.name == "2" else s for s in index.samples))
    with pytest.raises(DataError, match="1 of 7 samples for training have no mask, the first is 2"):
        batches(bare)
    with pytest.raises(DataError, match="for evaluation have no mask"):
        eval_loader(bare, bare.samples, DataSettings())
    with pytest.raises(DataError, match="no samples for training"):
        batches(index.with_samples(()))


@pytest.mark.parametrize(
    "error",
    [
        DataError("broken", hint="mend it"),
        SettingsError(["a: 1", "b: 2"]),
        MissingExtraError("nibabel", extra="medical", purpose="NIfTI"),
    ],
)
def test_errors_survive_the_way_out_of_a_worker(error):
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error) and vars(back) == vars(error)


@pytest.mark.parametrize(
    "wrong", [{"scale": (2.0, 1.0)}, {"scale": (0, 1)}, {"crop": (0, 5)}, {"resize": (8, -1)}]
)
def test_sizes_and_ranges_are_checked_where_they_are_read(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DataSettings(**wrong)


# --- real frames ---------------------------------------------------------------------------------


class PillowReader:
    def image(self, sample):
        return np.asarray(Pillow.open(sample.image).convert("RGB"))

    def mask(self, sample):
        mask = np.asarray(Pillow.open(sample.mask))
        return np.where(mask == 11, np.uint8(255), mask)


def test_real_frames_keep_their_classes_under_augmentation(shared_data):
    folder = shared_data / "camvid" / "train"
    samples = tuple(
        Sample(name=path.stem, image=path, mask=folder / "masks" / f"{path.stem}.png", split="train")
        for path in sorted((folder / "images").iterdir())[:6]
    )
    names = tuple(f"class{c}" for c in range(11))
    classes = Classes(names=names, palette=((0, 0, 0),) * 11)
    index = DataIndex(root=folder, format="made", samples=samples, classes=classes, reader=PillowReader())
    for batch in batches(index, num_steps=4, batch_size=3, crop=(256, 256)):
        assert batch.images.shape == (3, 3, 256, 256)
        assert set(batch.masks.unique().tolist()) <= {*range(11), 255}
        assert 0.1 < batch.images.mean() < 0.9
