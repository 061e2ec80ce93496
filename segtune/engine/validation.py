"""What happens at a validation: scores, the tensors that are kept, early stopping, the log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from segtune.config.run import LOWER_IS_BETTER
from segtune.data.base import Sample
from segtune.engine.checkpoint import Progress
from segtune.engine.evaluate import Evaluation, evaluate_samples
from segtune.engine.infer import Inference
from segtune.engine.job import Job
from segtune.engine.kept import rank_validation
from segtune.engine.log import MetricLog
from segtune.engine.phases import Phases
from segtune.engine.reporter import Reporter
from segtune.engine.tensors import write_tensors
from segtune.engine.world import World


class Validator:
    """Scores a job's model, and keeps the tensors of its best validations.

    Args:
        job: everything that was built for the run.
        reporter: hears the scores.
        world: the processes that share the work.
        phases: times the parts of an evaluation.
    """

    def __init__(self, job: Job, reporter: Reporter, world: World, phases: Phases) -> None:
        self.job = job
        self.reporter = reporter
        self.world = world
        self.phases = phases
        self.num_evaluated = 0
        """Images that this process has evaluated."""

    def evaluate(self, split: str) -> Evaluation:
        """Scores the model as it is on a split."""
        return self._evaluate(self.job.samples(split), split)

    def _evaluate(self, samples: Sequence[Sample], split: str) -> Evaluation:
        model = self.job.tunable.model
        model.eval()
        # under DDP each process has moved running statistics by its own part of a batch
        self.world.copy_first(self.job.tunable.applied.buffers().values())
        # other splits are scored once, so that nothing would be read again
        cache = self.job.cache if split == "val" else None
        evaluation = evaluate_samples(
            Inference(model, self.job.inference, cache),
            self.job.index,
            samples,
            self.job.config.data,
            split=split,
            batch_size=self._batch_size(),
            saliency=self.job.config.train.saliency,
            progress=self.reporter.evaluating,
            world=self.world,
            phases=self.phases,
        )
        self.num_evaluated += -(-evaluation.num_images // self.world.size)
        return evaluation

    def _batch_size(self) -> int:
        """As many whole images as have no more pixels than a training batch."""
        crop, largest = self.job.estimate.size, max(h * w for h, w in self.job.check.image_sizes)
        return max(1, self.job.config.train.num_images * crop[0] * crop[1] // largest)

    def run(
        self, progress: Progress, values: dict[str, Any], extra: dict[str, Any], log: MetricLog | None
    ) -> None:
        """One validation, or what stands in for it where there are no images to validate on.

        Args:
            progress: of the run; takes the outcome.
            values: step and epoch.
            extra: other values for the log.
            log: of the first process.
        """
        has_scores = bool(self.job.samples("val"))
        if has_scores:
            best, is_kept = self._judge(progress, values)
        else:
            best = is_kept = True
            progress.best_step = progress.step
            progress.kept = [{"step": progress.step, "score": 0.0}]
        if is_kept and log is not None:
            tensors = self.job.tunable.applied.state_dict()
            write_tensors(self.job.folder.kept(progress.step), tensors, {"step": str(progress.step)})
        if self.job.config.train.score_train is not None:
            trained = evenly(self.job.samples("train"), self.job.config.train.score_train)
            scores = self._evaluate(trained, "train").scores
            values.update({f"train_{name}": score for name, score in scores.items()})
        values.update({**extra, "seconds": progress.seconds, "best": best})
        progress.validations.append(values)
        if log is not None:
            log.write("val", values)
            log.write_table(progress.validations)
        self.reporter.validated(values)

    def _judge(self, progress: Progress, values: dict[str, Any]) -> tuple[bool, bool]:
        """Scores the validation split: whether it is the best so far, and whether it is kept."""
        train = self.job.config.train
        evaluation = self.evaluate("val")
        values.update(evaluation.scores)
        of_classes = zip(evaluation.class_names, evaluation.per_class["iou"], strict=True)
        values.update({f"iou/{name}": score for name, score in of_classes})
        score = evaluation.scores.get(train.monitor, math.nan)
        score = -score if train.monitor in LOWER_IS_BETTER else score
        # a class may be absent from every prediction: no number is worse than any number
        score = -math.inf if math.isnan(score) else score
        best = progress.best_score is None or score > progress.best_score
        if best:
            progress.best_score, progress.best_step = score, progress.step
        progress.stale = 0 if best else progress.stale + 1
        progress.stopped = train.early_stop is not None and progress.stale >= train.early_stop
        return best, rank_validation(progress, score, train.average_best or 1)


def evenly(samples: Sequence[Sample], most: int | Literal["all"]) -> list[Sample]:
    """At most so many images, or whole volumes, spread evenly over their order."""
    cases = list(dict.fromkeys(sample.case for sample in samples))
    count = len(cases) if most == "all" else min(most, len(cases))
    chosen = {cases[number * len(cases) // count] for number in range(count)}
    return [sample for sample in samples if sample.case in chosen]
