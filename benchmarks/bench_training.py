"""Training through the job against a bare torch loop over the same model, data and arithmetic.

    python benchmarks/bench_training.py --captions dataset.json --features BANK --config jobs/configs/X.yaml
        [--images_used 1000] [--rounds 3] [-- more arguments of the job]

The bare loop is what one would write without a library: index, tokenize, look features up, embed, loss, backward,
clip, step. Each round runs the job for two epochs, then the bare loop for two; captions a second of the second epochs
are compared.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ablation_runs import run_logged
from bench_feature_cache import subset

from jobs.train_xmatch import TrainXmatchConfig, build_tokenizer
from raydeploy.config import load_config
from xmatch.data.feature_sets import FeatureSets
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder
from xmatch.training.losses import info_nce
from xmatch.training.samples import read_split

EPOCHS = 2


def bare(config: TrainXmatchConfig) -> float:
    """Captions a second of the second epoch of a plain loop."""
    torch.set_num_threads(config.trainer.cpus_per_worker)
    torch.manual_seed(0)
    split, trainer = read_split(config.train), config.trainer
    tokenizer = build_tokenizer(config, split.captions)
    model = DualEncoder.from_config(config.model, tokenizer).train()
    sets = FeatureSets.from_bank(config.features)
    views = sets.require(split.image_ids)
    if config.model.scale_features:
        mean, std = sets.statistics(views[:, 0])
        model.set_feature_statistics(torch.from_numpy(mean).float(), torch.from_numpy(std).float())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.optim.lr, weight_decay=config.optim.weight_decay)
    rate = 0.0
    for epoch in range(EPOCHS):
        order, started = np.random.default_rng(epoch).permutation(len(split.captions)), time.perf_counter()
        for start in range(0, len(order), trainer.batch_size):
            rows = order[start : start + trainer.batch_size]
            images = split.caption_image[rows]
            features, mask = sets.take(views[images, epoch % views.shape[1]])
            texts = [split.captions[row] for row in rows]
            tokens = tokenizer(
                texts, padding=True, truncation=True, max_length=config.model.text.max_len, return_tensors="pt"
            )
            same = torch.from_numpy(images[:, None] == images[None])
            with torch.autocast("cpu", torch.bfloat16, enabled=trainer.precision == "bf16"):
                text = model.embed_sentences(tokens["input_ids"], tokens["attention_mask"])
                image = model.image_embeddings_from_features(torch.from_numpy(features).float(), torch.from_numpy(mask))
            loss = info_nce(text.float(), image.float(), model.logit_scale.exp(), same)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, config.optim.clip_norm)
            optimizer.step()
        rate = len(order) / (time.perf_counter() - started)
    return rate


def through_the_job(words: list[str], output: Path, log: Path) -> float:
    """The same of the job."""
    if run_logged(["jobs/train_xmatch.py", *words, "--output", str(output)], log):
        raise InputError(f"the job failed; see {log}")
    return [json.loads(line)["samples_per_s"] for line in (output / "metrics.jsonl").read_text().splitlines()][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", required=True, help="Karpathy JSON with splits train and val")
    parser.add_argument("--features", required=True, help="bank of image features of embed --side image_features")
    parser.add_argument("--images", required=True, help="folder of the images")
    parser.add_argument("--config", required=True, help="preset with loss info_nce and a frozen image tower")
    parser.add_argument("--images_used", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("more", nargs="*", help="more arguments of the job, after --")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    captions = subset(given.captions, folder, given.images_used)
    words = ["--config", given.config, "--features", given.features, "--augment", "none"]
    for side in ("train", "valid"):
        words += [f"--{side}.captions", captions, f"--{side}.images", given.images]
    words += ["--trainer.epochs", str(EPOCHS), *given.more]
    config = load_config(
        TrainXmatchConfig, [*words, "--output", str(folder / "bare")], name="bench", description=""
    ).config
    ratios = []
    for number in range(given.rounds):
        ours, plain = through_the_job(words, folder / f"job-{number}", folder / "log"), bare(config)
        ratios.append(ours / plain)
        print(
            f"round {number + 1}: job {ours:.0f}, bare loop {plain:.0f} captions/s, ratio {ratios[-1]:.3f}", flush=True
        )
    print(f"{given.config}: median ratio {statistics.median(ratios):.3f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
