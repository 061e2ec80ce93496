"""One run: open and check the data, build, train, save the best adapter, score it."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import segtune
from segtune.config.run import RunConfig
from segtune.data.check_report import CheckReport
from segtune.data.prompts import PromptSource
from segtune.data.transforms import to_tensor
from segtune.engine.adapter import TENSORS, describe, save_adapter, verify_adapter
from segtune.engine.batch import available_bytes, batch_size_of_run
from segtune.engine.build import build_from_config, learning_rate, place
from segtune.engine.cost import trainable_table
from segtune.engine.files import write_json
from segtune.engine.folder import RunFolder
from segtune.engine.half import halve_if_equal
from segtune.engine.image_counts import ImageCounts, write_counts
from segtune.engine.intake import take_in
from segtune.engine.job import Job, prepare
from segtune.engine.kept import averaged_steps, load_average, load_step
from segtune.engine.phases import Phases
from segtune.engine.profile import Profiler
from segtune.engine.rank import is_first_process
from segtune.engine.reporter import Reporter
from segtune.engine.run import git_commit, versions
from segtune.engine.tracking import require_trackers
from segtune.engine.train import Trainer
from segtune.engine.world import join_world
from segtune.errors import SegtuneError

PROBE_SIDE = 512
"""Largest side in pixels of the image that a saved adapter is verified on."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a finished run has to show."""

    folder: Path
    result: dict[str, Any]
    """The content of result.json."""

    @property
    def scores(self) -> dict[str, float]:
        """Scores on the test split, or on the validation split where there is no test split."""
        scores: dict[str, float] = (self.result["test"] or self.result["val"] or {}).get("scores", {})
        return scores


def fit(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    check: CheckReport | None = None,
    began: float | None = None,
    profile: bool = False,
) -> FitResult:
    """Tunes a model on a data set and leaves a run folder.

    Args:
        config: the complete settings; `data_path` must be given.
        out: the run's folder; must be new or empty, unless resuming.
        resume: go on from the folder's last checkpoint; equal to a run that was never interrupted.
        reporter: hears what happens.
        check: what `take_in` found, where it was done already.
        began: moment of `time.perf_counter` at which the run's start-up began; default: now.
        profile: time the parts of the first steps and record a trace, in the run's folder.

    Returns:
        Scores and costs.

    Raises:
        UsageError: the folder is in use, or there is nothing to resume.
        DataError: the data has errors.
        TrainingError: the loss is not a number, or memory ran out.
    """
    began = time.perf_counter() if began is None else began
    folder = RunFolder(out)
    if is_first_process():
        folder.claim(resume=resume)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    require_trackers(config.train.trackers)
    world = join_world(config)
    reporter = reporter if reporter is not None and world.is_first else Reporter()
    try:
        check = world.first(lambda: check or take_in(config, reporter))
        if config.train.batch_size == "auto":
            found = check
            choice = world.first(lambda: batch_size_of_run(config, found))
            train = config.train.model_copy(update={"batch_size": choice.batch_size})
            config = replace(config, train=train)
            reporter.note(choice.note)
        job = prepare(config, folder, check)
        if world.is_first:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.write_config(config)
            write_json(folder.data, check.to_dict())
        _announce(job, reporter)
        profiler = _profiler(job) if profile and world.is_first else None
        trainer = Trainer(job, reporter, world, profiler or Phases())
        failed = True
        try:
            _train(trainer, began, resume=resume)
            finished = _finish(job, trainer, reporter)
            failed = False
        finally:
            if profiler is not None:
                profiler.close()
            if trainer.tracking is not None:
                trainer.tracking.close(failed=failed)
        if profiler is not None:
            _show(profiler, finished, trainer.validator.num_evaluated, reporter)
        return finished
    finally:
        reporter.close()


def _train(trainer: Trainer, began: float, *, resume: bool) -> None:
    job, world = trainer.job, trainer.world
    tunable, halved = job.tunable, False
    # parameters that are divided among processes must be of one type
    if tunable.applied.parameters() and job.config.train.strategy == "ddp":
        halved = halve_if_equal(tunable.model, tunable.applied, job.precision)
    try:
        trainer.run(began)
    except (SegtuneError, OSError):
        # not one step was done: nothing is worth keeping
        if world.is_first and not resume and trainer.progress.step == 0:
            shutil.rmtree(job.folder.path)
        raise
    if world.shards is not None or halved:  # the tuned tensors are read from disk; the base is that of before
        job.tunable = build_from_config(job.config, job.index.classes)
        place(job.tunable.model, job.device)
        if job.cache is not None:
            job.cache.model = job.tunable.model


def _profiler(job: Job) -> Profiler:
    steps = job.config.train.profile_steps
    return Profiler(job.tunable.model, job.device, steps, job.folder.profile)


def _show(profiler: Profiler, finished: FitResult, num_evaluated: int, reporter: Reporter) -> None:
    for table in profiler.write(finished.result["seconds"], num_evaluated):
        reporter.table("", table.header, table.rows)
    advice = profiler.advice()
    reporter.note(*([advice] if advice else []), f"profile: {finished.folder / 'profile'}")


def _announce(job: Job, reporter: Reporter) -> None:
    config, applied, estimate = job.config, job.tunable.applied, job.estimate
    counts = applied.counts()
    reporter.note(*job.tunable.weights.lines)
    reporter.table(
        f"{config.model} with {config.method}: {counts['trainable']:,} of {counts['total']:,} parameters"
        f" are trained ({counts['trainable'] / counts['total']:.2%}); everything else is frozen",
        ("module", "parameters", "trained"),
        [(name, f"{total:,}", f"{part:,}") for name, total, part in trainable_table(applied)],
    )
    reporter.note(
        *([quantized.describe()] if (quantized := job.tunable.quantized) else []),
        f"estimated memory of a training step: {estimate.total / 2**30:.2f} GiB for {estimate.batch_size}"
        f" images of {estimate.size[0]}x{estimate.size[1]} pixels in {job.precision} on {job.device}",
        *_memory_notes(job),
        *_prompt_notes(job),
        *([job.cache_note] if job.cache_note else []),
        *_ending_notes(job),
    )


def _memory_notes(job: Job) -> list[str]:
    """The process's memory on a processor, and a warning where a step will not fit."""
    estimate, lines = job.estimate, list[str]()
    if estimate.program:
        lines.append(f"with the program itself: {estimate.process / 2**30:.2f} GiB")
    # the weights are there already
    missing = estimate.total - estimate.weights - available_bytes(job.device)
    if missing > 0:
        lines.append(
            f"warning: that is {missing / 2**30:.2f} GiB more than is free; `segtune inspect --data DATA`"
            " with the same settings says what would lower it"
        )
    return lines


def _prompt_notes(job: Job) -> list[str]:
    """Where a prompted model's prompts come from: scores mean something else with them."""
    kinds = job.tunable.model.prompted
    if not kinds:
        return []
    source = PromptSource(job.config.data, kinds, job.index.classes.ignore_index)
    return [f"prompts: {source.describe()}; scores are those of a model that is told where the objects are"]


def _ending_notes(job: Job) -> list[str]:
    """Which tensors the run will end with, where it is not simply the best validation's."""
    train = job.config.train
    notes = []
    if train.ema is not None:
        notes.append(f"a moving average of the tensors (decay {train.ema}) is scored and saved (train.ema)")
    if train.average_best is not None:
        notes.append(f"the {train.average_best} best validations' tensors are averaged at the end")
    if not job.samples("val") and job.num_steps:
        notes.append("there are no validation images: the tensors of the last step are kept")
    return notes


def _finish(job: Job, trainer: Trainer, reporter: Reporter) -> FitResult:
    config, folder, applied, progress = job.config, job.folder, job.tunable.applied, trainer.progress
    world = trainer.world
    seconds = {"training": progress.seconds, **progress.other_seconds}
    begin = time.perf_counter()
    average = load_average(job, world, progress)
    if average is None:
        load_step(job, world, averaged_steps(progress)[0])
    else:
        reporter.note(f"averaged the tensors of steps {', '.join(map(str, average['steps']))}")
    if world.is_first:
        description = describe(job.tunable, config, job.index.classes, job.inference.to_dict())
        save_adapter(job.tunable, description, folder.adapter)
        verify_adapter(job.tunable, folder.adapter, _probe(job))
        reporter.note(f"adapter saved and loaded back with equal outputs: {folder.adapter}")
    seconds["adapter"] = time.perf_counter() - begin
    begin = time.perf_counter()
    scores = {split: _score(job, trainer, split) for split in ("val", "test")}
    if average is not None:
        average["best_single"] = _best_single(job, trainer)
    seconds["final_scores"] = time.perf_counter() - begin
    counts = applied.counts()
    adapter_bytes = world.first(lambda: (folder.adapter / TENSORS).stat().st_size)
    result = {
        "model": config.model,
        "method": config.method,
        "weights": job.tunable.weights.source,
        "quantized": None if job.tunable.quantized is None else asdict(job.tunable.quantized),
        "data": str(config.data_path),
        "num_classes": job.index.classes.num_classes,
        "class_names": job.index.classes.names,
        "splits": job.index.split_sizes,
        **scores,
        "parameters_total": counts["total"],
        "parameters_trainable": counts["trainable"],
        "adapter_bytes": adapter_bytes,
        "steps": progress.step,
        "best_step": progress.best_step,
        "stopped_early": progress.stopped,
        "average": average,
        "train_seconds": progress.seconds,
        "seconds": seconds,
        "wait_share": progress.wait_seconds / progress.seconds if progress.seconds else 0.0,
        "images_per_second": progress.images / progress.seconds if progress.seconds else 0.0,
        **trainer.resources,
        "cache": None if job.cache is None else asdict(job.cache.counts),
        "estimated_step_bytes": job.estimate.total,
        "device": job.device.type,
        "processes": world.size,
        "precision": job.precision,
        "crop": job.crop,
        "learning_rate": learning_rate(config, applied),
        "seed": config.train.seed,
        "versions": versions(),
        "commit": git_commit(Path(segtune.__file__).parent.parent),
    }
    if world.is_first:
        write_json(folder.result, result)
        assert trainer.tracking is not None, "it was trained, or kept as it is"
        trainer.tracking.finish(result)
    return FitResult(folder=folder.path, result=result)


def _score(job: Job, trainer: Trainer, split: str) -> dict[str, Any] | None:
    """The scores of a split, if it has samples; the counts of its images go into a file of their own."""
    samples = job.samples(split)
    if not samples:
        return None
    evaluation = trainer.validator.evaluate(split)
    groups = {sample.case: sample.group for sample in samples}
    if trainer.world.is_first:
        write_counts(job.folder.images(split), ImageCounts.from_tally(evaluation.tally, groups))
    return evaluation.to_dict()


def _best_single(job: Job, trainer: Trainer) -> dict[str, Any]:
    """Scores of the best validation's own tensors, to compare those of the average with."""
    step = trainer.progress.kept[0]["step"]
    load_step(job, trainer.world, step)
    scores = {
        split: trainer.validator.evaluate(split).scores for split in ("val", "test") if job.samples(split)
    }
    return {"step": step, **scores}


def _probe(job: Job) -> Tensor:
    sample = (job.index.split("val") or job.index.split("train"))[0]
    image = to_tensor(job.index.reader.image(sample))
    return image[None, :, :PROBE_SIDE, :PROBE_SIDE]
