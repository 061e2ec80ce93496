"""Makes the weights that ship with the package: generated day scenes, a run, a merged checkpoint.

Usage: python tools/make_demo_weights.py OUT.safetensors
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from segtune.cli.console import ConsoleReporter
from segtune.config.layers import Layer, read_yaml
from segtune.config.load import load_config
from segtune.demo.scenes import write_dataset
from segtune.engine.files import write_json
from segtune.engine.fit import fit
from segtune.engine.merge import merge_run
from segtune.engine.run import load_run

REPOSITORY = Path(__file__).resolve().parent.parent
RECIPE = REPOSITORY / "recipes" / "demo-unet-day.yaml"
RESULT = REPOSITORY / "benchmarks" / "demo-unet-day.json"
NUM_TRAIN, NUM_VAL, NUM_TEST, SEED = 1200, 60, 100, 1


def main(out: Path) -> None:
    """Writes the checkpoint, and the run's numbers beside the other benchmarks."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "day"
        write_dataset(data, "day", num_train=NUM_TRAIN, num_val=NUM_VAL, num_test=NUM_TEST, seed=SEED)
        config = load_config([read_yaml(RECIPE), Layer("data", {"data": {"path": str(data)}})])
        result = fit(config, Path(folder) / "run", reporter=ConsoleReporter()).result
        merge_run(load_run(Path(folder) / "run", accelerator="cpu"), out, overwrite=True)
    del result["data"]
    for split in ("val", "test"):
        result[split] = {key: result[split][key] for key in ("num_images", "scores", "per_class")}
    write_json(RESULT, {**result, "recipe": RECIPE.name, "seed_of_scenes": SEED})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
