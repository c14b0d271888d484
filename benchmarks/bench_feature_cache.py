"""An epoch of training with frozen towers computed once, against the same epoch with the towers in every step.

    python benchmarks/bench_feature_cache.py --captions dataset.json --images FOLDER --config jobs/configs/X.yaml
        [--images_used 64] [--rounds 3] [-- more arguments of the job]

Both are the real job on the same captions, one after the other in each round; what is compared is the training time of
the epochs from the second on, as the job's own record has it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ablation_runs import run_logged

from xmatch.data import files
from xmatch.errors import InputError

EPOCHS = 3


def subset(captions: str, folder: Path, count: int) -> str:
    """A Karpathy file of the first `count` training images and eight to validate on."""
    content = files.read_json(captions)
    chosen: list[dict[str, Any]] = []
    for split, number in (("train", count), ("val", 8)):
        chosen += [entry for entry in content["images"] if entry["split"] == split][:number]
    if len(chosen) < count + 8:
        raise InputError(f"{captions!r} has fewer than {count} training and 8 validation images.")
    path = folder / "captions.json"
    path.write_text(json.dumps(content | {"images": chosen}))
    return str(path)


def epochs_of(arguments: list[str], output: Path, log: Path) -> list[float]:
    """Run the job; the training seconds of each epoch."""
    words = ["jobs/train_xmatch.py", *arguments, "--trainer.epochs", str(EPOCHS), "--output", str(output)]
    if run_logged(words, log):
        raise InputError(f"the job failed; see {log}")
    return [json.loads(line)["seconds"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", required=True, help="Karpathy JSON with splits train and val")
    parser.add_argument("--images", required=True, help="folder of its images")
    parser.add_argument("--config", required=True, help="preset whose towers are frozen")
    parser.add_argument("--images_used", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", action="store_true", help="cache the frozen text tower, too")
    parser.add_argument("more", nargs="*", help="more arguments of the job, after --")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    captions = subset(given.captions, folder, given.images_used)
    common = ["--config", given.config, *given.more]
    for side in ("train", "valid"):
        common += [f"--{side}.captions", captions, f"--{side}.images", given.images]
    cached = ["--augment", "none", *(["--text_features", "compute"] if given.text else [])]
    ratios = []
    for number in range(given.rounds):
        slow = epochs_of([*common, "--augment", "random_crop"], folder / f"towers-{number}", folder / "log")
        fast = epochs_of([*common, *cached], folder / f"cached-{number}", folder / "log")
        ratios.append(statistics.mean(slow[1:]) / statistics.mean(fast[1:]))
        print(
            f"round {number + 1}: towers in every step {statistics.mean(slow[1:]):.2f} s an epoch, computed once "
            f"{statistics.mean(fast[1:]):.3f} s, ratio {ratios[-1]:.1f}",
            flush=True,
        )
    print(f"{given.config}, {given.images_used} images: median ratio {statistics.median(ratios):.1f} from epoch 2 on")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
