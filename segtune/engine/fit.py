"""The training run, from top to bottom."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor

from segtune.config.run import DEFAULT_EPOCHS, RunConfig
from segtune.data.base import DataIndex, Sample, Severity
from segtune.data.check import CheckReport, check_data
from segtune.data.loading import steps_per_epoch, train_loader
from segtune.data.open import open_data
from segtune.data.transforms import resolve_crop, to_tensor
from segtune.engine.adapter import describe, save_adapter, verify_adapter
from segtune.engine.build import (
    build_from_config,
    build_loss,
    choose_device,
    choose_precision,
    learning_rate,
)
from segtune.engine.checkpoint import Progress, load_checkpoint, save_checkpoint
from segtune.engine.cost import estimate_memory, memory_advice, trainable_table
from segtune.engine.evaluate import Evaluation, evaluate_samples
from segtune.engine.files import write_json
from segtune.engine.folder import RunFolder
from segtune.engine.infer import Inference, InferenceSettings
from segtune.engine.log import MetricLog
from segtune.engine.optim import build_optimizer, rate_factor
from segtune.engine.reporter import Reporter
from segtune.engine.resources import ResourceMonitor
from segtune.engine.run import git_commit, versions
from segtune.engine.tensors import write_tensors
from segtune.errors import DataError, TrainingError, UsageError
from segtune.types import Batch, SegOutput

MAX_STEPS_BETWEEN_CHECKPOINTS = 500
LOWER_IS_BETTER = frozenset({"cross_entropy"})


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


def fit(config: RunConfig, out: Path, *, resume: bool = False, reporter: Reporter | None = None) -> FitResult:
    """Tunes a model on a data set and leaves a run folder.

    Args:
        config: the complete settings; `data_path` must be given.
        out: the run's folder; must be new or empty, unless resuming.
        resume: go on from the folder's last checkpoint; equal to a run that was never interrupted.
        reporter: hears what happens.

    Returns:
        Scores and costs.

    Raises:
        UsageError: the folder is in use, or there is nothing to resume.
        DataError: the data has errors.
        TrainingError: the loss is not a number, or memory ran out.
    """
    reporter = reporter or Reporter()
    folder = RunFolder(out)
    _claim(folder, resume)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    assert config.data_path is not None
    index = open_data(config.data_path, config.data)
    check = _check(index, config, reporter)
    try:
        return _Run(config, folder, index, check, reporter).run()
    finally:
        reporter.close()


def _claim(folder: RunFolder, resume: bool) -> None:
    if resume:
        if not folder.config.is_file():
            raise UsageError(
                f"there is nothing to resume in {folder.path}", hint="leave --resume out to start a run"
            )
    elif folder.path.exists() and any(folder.path.iterdir()):
        raise UsageError(
            f"the run folder {folder.path} is not empty",
            hint="go on with --resume, or give another folder with --out",
        )


def _check(index: DataIndex, config: RunConfig, reporter: Reporter) -> CheckReport:
    reporter.note(*index.evidence)
    check = check_data(index, config.data)
    for finding in check.findings:
        if finding.severity is not Severity.INFO:
            reporter.note(f"{finding.severity}: {finding.message} [{finding.code}]")
    errors = [finding for finding in check.findings if finding.severity is Severity.ERROR]
    if errors:
        codes = sorted({finding.code for finding in errors})
        raise DataError(
            "the data has errors:\n"
            + "\n".join(f"    [{f.code}] {f.message}\n      fix: {f.hint}" for f in errors),
            hint=f"mend them, or go on all the same with --set data.allow={','.join(codes)}",
        )
    if not index.split("train"):
        raise DataError("there are no training images", hint="see `segtune data check`")
    return check


class _Run:
    """The state of one run while it goes on."""

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        index: DataIndex,
        check: CheckReport,
        reporter: Reporter,
    ) -> None:
        self.config = config
        self.folder = folder
        self.index = index
        self.check = check
        self.reporter = reporter
        self.device = choose_device(config.train.accelerator)
        self.precision = choose_precision(config.train.precision, self.device)
        self.inference_settings = InferenceSettings.from_data(config.data, self.precision)
        self.tunable = build_from_config(config, index.classes)
        self.loss = build_loss(config, index.classes).to(self.device)
        self._refuse_channels()
        self.crop = self._crop()
        batches = steps_per_epoch(len(index.split("train")), config.train.batch_size)
        self.steps_per_epoch = max(1, batches // config.train.accumulate)
        epochs = config.train.epochs or DEFAULT_EPOCHS
        self.num_steps = config.train.steps or epochs * self.steps_per_epoch

    def _refuse_channels(self) -> None:
        wanted, found = self.tunable.model.input_spec.channels, self.index.channels
        if wanted != found:
            raise UsageError(
                f"the images have {found} channels and {self.config.model} takes {wanted}",
                hint=f"use --set model.channels={found} (unet, smp:...), or images with {wanted} channels",
            )

    def _crop(self) -> tuple[int, int] | None:
        crop = self.config.data.crop
        if crop == "auto":
            resize = self.config.data.resize
            sizes = self.check.image_sizes if resize is None else [resize]
            return resolve_crop(sizes, self.tunable.model.input_spec.multiple)
        return crop

    def run(self) -> FitResult:
        """Trains, saves the best model, scores it."""
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.folder.write_config(self.config)
        write_json(self.folder.data, self.check.to_dict())
        self._announce()
        self._train()
        return self._finish()

    def _announce(self) -> None:
        config, applied = self.config, self.tunable.applied
        counts = applied.counts()
        self.reporter.note(*self.tunable.weights.lines)
        self.reporter.table(
            f"{config.model} with {config.method}: {counts['trainable']:,} of {counts['total']:,} parameters"
            f" are trained ({counts['trainable'] / counts['total']:.2%}); everything else is frozen",
            ("module", "parameters", "trained"),
            [(name, f"{total:,}", f"{part:,}") for name, total, part in trainable_table(applied)],
        )
        size = self.crop or max(self.check.image_sizes, key=lambda s: s[0] * s[1])
        estimate = estimate_memory(
            model=config.model,
            model_settings=config.model_settings,
            num_classes=self.index.classes.num_classes,
            parts=config.method_parts,
            batch_size=config.train.batch_size,
            size=size,
            precision=self.precision,
            optimizer=config.optim.name,
        )
        self.estimate = estimate
        self.reporter.note(
            f"estimated memory of a training step: {estimate.total / 2**30:.2f} GiB for"
            f" {estimate.batch_size} images of {size[0]}x{size[1]} pixels in {self.precision}",
            *memory_advice(config.method, estimate),
        )

    # --- training -----------------------------------------------------------------------------

    def _train(self) -> None:
        config = self.config
        applied = self.tunable.applied
        optimizer = build_optimizer(applied.parameters(), config.optim, learning_rate(config))
        peaks = [group["lr"] for group in optimizer.param_groups]
        precision: Any = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[self.precision]
        fabric = Fabric(accelerator=self.device.type, devices=1, precision=precision)
        self.progress = Progress()
        if self.folder.last.is_file():
            self.progress, tensors, optimizer_state, scaler = load_checkpoint(self.folder.last)
            applied.load_state_dict(tensors)
            optimizer.load_state_dict(optimizer_state)
            fabric.strategy.precision.load_state_dict(scaler)
            self.reporter.note(f"continuing behind step {self.progress.step} of {self.num_steps}")
        model, optimizer = fabric.setup(self.tunable.model, optimizer)
        progress = self.progress
        log = MetricLog(self.folder, progress.log_bytes, progress.step)
        self.reporter.training(progress.step, self.num_steps)
        started, waited = time.perf_counter() - progress.seconds, progress.wait_seconds
        batches = self._batches(progress.step)
        model.train()
        try:
            with ResourceMonitor(self.device) as monitor:
                while progress.step < self.num_steps and not progress.stopped:
                    begin = time.perf_counter()
                    factor = rate_factor(config.optim, progress.step, self.num_steps)
                    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                        group["lr"] = peak * factor
                    # dropout and the like depend on the step alone, so that resuming repeats them
                    torch.manual_seed(_step_seed(config.train.seed, progress.step))
                    loss, wait, num_images = self._step(fabric, model, optimizer, batches)
                    progress.step += 1
                    now = time.perf_counter()
                    progress.seconds, waited = now - started, waited + wait
                    progress.wait_seconds = waited
                    progress.images += num_images
                    progress.peak_process_bytes = max(progress.peak_process_bytes, monitor.peak_process_bytes)
                    values = {
                        "step": progress.step,
                        "epoch": (progress.step - 1) // self.steps_per_epoch + 1,
                        "loss": loss,
                        "learning_rate": peaks[0] * factor,
                        "seconds": now - begin,
                        "wait_seconds": wait,
                        "images_per_second": num_images / (now - begin),
                    }
                    log.write("train", values)
                    self.reporter.step(values)
                    if self._epoch_ends(config.train.validate_every):
                        self._validate(log, {**monitor.snapshot(), "train_loss": loss})
                        model.train()
                        started = time.perf_counter() - progress.seconds
                    if self._checkpoint_due():
                        progress.log_bytes = log.num_bytes
                        self._checkpoint(fabric, optimizer)
                self.resources = monitor.snapshot()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            raise self._explain(error) from error
        except KeyboardInterrupt:
            progress.log_bytes = log.num_bytes
            raise
        finally:
            log.close()

    def _batches(self, step: int) -> Iterator[Batch]:
        config = self.config
        accumulate = config.train.accumulate
        return iter(
            train_loader(
                self.index,
                config.data,
                batch_size=config.train.batch_size,
                seed=config.train.seed,
                start_step=step * accumulate,
                num_steps=(self.num_steps - step) * accumulate,
                crop=self.crop,
            )
        )

    def _step(
        self, fabric: Fabric, model: Any, optimizer: Any, batches: Iterator[Batch]
    ) -> tuple[float, float, int]:
        """One optimiser step: mean loss, seconds waited for data, number of images."""
        accumulate = self.config.train.accumulate
        total, waited, num_images, names = 0.0, 0.0, 0, list[str]()
        for part in range(accumulate):
            begin = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - begin
            images = batch.images.to(self.device, non_blocking=True)
            masks = batch.masks.to(self.device, non_blocking=True)
            with fabric.no_backward_sync(model, enabled=part < accumulate - 1):
                output: SegOutput = model(images)
                loss = self._total_loss(output, masks)
                names += batch.names
                if not torch.isfinite(loss):
                    raise self._not_a_number(loss.item(), names)
                fabric.backward(loss / accumulate)
            total += loss.item() / accumulate
            num_images += len(batch.names)
        if self.config.optim.clip is not None:
            norm = fabric.clip_gradients(
                model, optimizer, max_norm=self.config.optim.clip, error_if_nonfinite=False
            )
            # half precision: the scaler skips the step and lowers its scale by itself
            if self.precision != "16" and norm is not None and not torch.isfinite(norm):
                raise self._not_a_number(norm.item(), names)
        optimizer.step()
        optimizer.zero_grad()
        return total, waited, num_images

    def _total_loss(self, output: SegOutput, masks: Tensor) -> Tensor:
        total: Tensor = self.loss(output.logits, masks)
        for logits in output.auxiliary.values():
            total = total + self.config.loss_common.auxiliary_weight * self.loss(logits, masks)
        for penalty in output.penalties.values():
            total = total + self.config.loss_common.penalty_weight * penalty
        return total

    def _epoch_ends(self, every: int) -> bool:
        last = self.progress.step == self.num_steps
        return last or self.progress.step % (self.steps_per_epoch * every) == 0

    def _checkpoint_due(self) -> bool:
        step, every = self.progress.step, self.config.train.checkpoint_every
        if every is not None:
            return step % every == 0 or step == self.num_steps
        return self._epoch_ends(1) or step % MAX_STEPS_BETWEEN_CHECKPOINTS == 0

    def _checkpoint(self, fabric: Fabric, optimizer: Any) -> None:
        save_checkpoint(
            self.folder.last,
            self.progress,
            self.tunable.applied.state_dict(),
            optimizer.state_dict(),
            fabric.strategy.precision.state_dict(),
        )

    def _validate(self, log: MetricLog, extra: dict[str, Any]) -> None:
        progress = self.progress
        epoch = (progress.step - 1) // self.steps_per_epoch + 1
        values: dict[str, Any] = {"step": progress.step, "epoch": epoch}
        best = True
        if self.index.split("val"):
            evaluation = self._evaluate("val")
            values.update(evaluation.scores)
            monitor = self.config.train.monitor
            score = evaluation.scores[monitor] * (-1 if monitor in LOWER_IS_BETTER else 1)
            best = progress.best_score is None or score > progress.best_score
            if best:
                progress.best_score, progress.best_step = score, progress.step
            progress.stale = 0 if best else progress.stale + 1
            patience = self.config.train.early_stop
            progress.stopped = patience is not None and progress.stale >= patience
        else:
            progress.best_step = progress.step
        if best:
            write_tensors(self.folder.best, self.tunable.applied.state_dict(), {"step": str(progress.step)})
        values.update({**extra, "seconds": progress.seconds, "best": best})
        progress.validations.append(values)
        log.write("val", values)
        log.write_table(progress.validations)
        self.reporter.validated(values)

    def _evaluate(self, split: str) -> Evaluation:
        self.tunable.model.eval()
        inference = Inference(self.tunable.model, self.inference_settings)
        return evaluate_samples(
            inference,
            self.index,
            self._samples(split),
            self.config.data,
            split=split,
            batch_size=self.config.train.batch_size,
            progress=self.reporter.evaluating,
        )

    def _samples(self, split: str) -> Sequence[Sample]:
        return [sample for sample in self.index.split(split) if sample.mask is not None]

    # --- the end ------------------------------------------------------------------------------

    def _finish(self) -> FitResult:
        config, applied, progress = self.config, self.tunable.applied, self.progress
        applied.load_state_dict(load_file(self.folder.best))
        description = describe(self.tunable, config, self.index.classes, self.inference_settings.to_dict())
        save_adapter(self.tunable, description, self.folder.adapter)
        verify_adapter(self.tunable, self.folder.adapter, self._probe())
        self.reporter.note(f"adapter saved and loaded back with equal outputs: {self.folder.adapter}")
        scores = {
            split: self._evaluate(split).to_dict() if self._samples(split) else None
            for split in ("val", "test")
        }
        counts = applied.counts()
        adapter_bytes = sum(file.stat().st_size for file in self.folder.adapter.iterdir())
        result = {
            "model": config.model,
            "method": config.method,
            "weights": self.tunable.weights.source,
            "data": str(config.data_path),
            "num_classes": self.index.classes.num_classes,
            "class_names": self.index.classes.names,
            "splits": self.index.split_sizes,
            **scores,
            "parameters_total": counts["total"],
            "parameters_trainable": counts["trainable"],
            "adapter_bytes": adapter_bytes,
            "steps": progress.step,
            "best_step": progress.best_step,
            "stopped_early": progress.stopped,
            "train_seconds": progress.seconds,
            "wait_share": progress.wait_seconds / progress.seconds if progress.seconds else 0.0,
            "images_per_second": progress.images / progress.seconds if progress.seconds else 0.0,
            **getattr(self, "resources", {}),
            "peak_process_bytes": progress.peak_process_bytes,
            "estimated_step_bytes": self.estimate.total,
            "device": self.device.type,
            "precision": self.precision,
            "crop": self.crop,
            "learning_rate": learning_rate(config),
            "seed": config.train.seed,
            "versions": versions(),
            "commit": git_commit(Path(__file__)),
        }
        write_json(self.folder.result, result)
        return FitResult(folder=self.folder.path, result=result)

    def _probe(self) -> Tensor:
        sample = (self.index.split("val") or self.index.split("train"))[0]
        image = to_tensor(self.index.reader.image(sample))
        return image[None, :, :512, :512]

    # --- what goes wrong ----------------------------------------------------------------------

    def _not_a_number(self, value: float, names: list[str]) -> TrainingError:
        kept = f"step {self.progress.step}" if self.folder.last.is_file() else "none yet"
        return TrainingError(
            f"the loss or its gradient is {value} at step {self.progress.step + 1}, on the images"
            f" {', '.join(names)}; the last good checkpoint ({kept}) is kept in {self.folder.last.parent}",
            hint="lower optim.learning_rate, set train.precision=32, or look at these images",
        )

    def _explain(self, error: Exception) -> Exception:
        text = str(error)
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text
        if not out_of_memory:
            return error
        size = self.config.train.batch_size
        smaller = max(1, size // 2)
        advice = (
            f"--set train.batch_size={smaller} --set train.accumulate={self.config.train.accumulate * 2}"
            if size > 1
            else "--set data.crop=256,256, or --method head"
        )
        return TrainingError(
            f"out of memory on {self.device} with batches of {size}, crops of {self.crop} in {self.precision}"
            f" (estimate: {self.estimate.total / 2**30:.1f} GiB)",
            hint=advice,
        )


def _step_seed(seed: int, step: int) -> int:
    digest = hashlib.sha256(f"step {seed} {step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
