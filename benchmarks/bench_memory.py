"""Memory of driver and workers as a corpus grows a hundred times, its shards staying as they are.

    python benchmarks/bench_memory.py --output benchmarks/results/DATE-memory.png

Tokenizes and vokenizes corpora of 1, 10 and 100 times the lines, each job a program of its own on the smallest object
store that Ray has, and takes the largest resident set of the driver, of the actors that compute and of the tasks that
read, and what of it was their own rather than pages of libraries and of the object store. Beside it, the same number
of lines in ever more shards: what one more shard costs the driver. Writes a PNG, the figures as JSON beside it, and
prints them as a table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from vokenize.tokens import load_tokenizer
from xmatch import DualEncoder
from xmatch.data.vectors import make_vectors, write_vectors
from xmatch.models.dual_encoder import DualEncoderConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.models.towers.text import TextTowerConfig

ROOT = Path(__file__).parents[1]
MATCHER = str(ROOT / "examples" / "matcher")
FACTORS = (1, 10, 100)
STORE_MB = 75
PROCESSES = ("driver", "actor", "task")


def save_model(folder: str) -> str:
    """A small dual encoder with random weights."""
    text = TextTowerConfig(name=None, hidden_size=64, num_layers=2, num_heads=2, layers=(1,), trainable=True)
    image = ImageTowerConfig(name="test_resnet.r160_in1k", weights="none", image_size=32, resize=36)
    torch.manual_seed(0)
    config = DualEncoderConfig(dim=64, pooling="mean", image=image, text=text)
    DualEncoder.from_config(config, load_tokenizer(MATCHER)).save_pretrained(folder)
    return folder


def save_keys(path: str) -> None:
    """A thousand random keys."""
    rows = np.random.default_rng(0).standard_normal((1000, 64), dtype=np.float32)
    write_vectors(path, make_vectors([str(i) for i in range(1000)], rows / np.linalg.norm(rows, axis=1, keepdims=True)))


def write_lines(path: Path, count: int) -> None:
    """Sentences of the example text, each made different by a number."""
    sentences = (ROOT / "examples" / "text" / "sentences.txt").read_text().splitlines()
    with open(path, "w") as sink:
        sink.writelines(f"{sentences[at % len(sentences)]} {at}\n" for at in range(count))


def run(folder: Path, job: str, *arguments: str) -> dict[str, Any]:
    """Peaks of one job, in bytes."""
    record = folder / "record.json"
    command = [sys.executable, "benchmarks/watched_job.py", "--store_mb", str(STORE_MB), "--record", str(record), "--"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run([*command, job, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found = json.loads(record.read_text())
    peaks = {"driver": found["driver_bytes"], **found["worker_bytes"], "spilled": found["spilled_bytes"]}
    return peaks | {f"{name}_own": size for name, size in found["own_bytes"].items()}


def measure(folder: Path, lines: int, lines_per_shard: int, *, has_vokens: bool = True) -> dict[str, Any]:
    """Peaks of both jobs on a corpus of so many lines."""
    write_lines(folder / "corpus.txt", lines)
    tokens = str(folder / "tokens")
    row: dict[str, Any] = {"lines": lines, "shards": -(-lines // lines_per_shard)}
    row["tokenize_corpus"] = run(folder, "tokenize_corpus", "--corpus.path", str(folder / "corpus.txt"), "--tokenizer",
        MATCHER, "--lines_per_shard", str(lines_per_shard), "--ray.calibration_s", "1", "--output", tokens)  # fmt: skip
    manifest = json.loads(Path(tokens, "manifest.json").read_text())
    row["tokens"] = manifest["counts"]["tokens"]
    if has_vokens:
        row["vokenize_corpus"] = run(folder, "vokenize_corpus", "--tokens", tokens, "--keys", str(folder / "keys"),
            "--model", str(folder / "model"), "--vokenize.level", "both", "--vokenize.top_k", "3",
            "--ray.calibration_s", "1", "--output", str(folder / "vokens"))  # fmt: skip
    for name in ("tokens", "vokens"):
        subprocess.run(["rm", "-rf", str(folder / name)], check=True)
    print(json.dumps(row), flush=True)
    return row


def plot(rows: list[dict[str, Any]], path: str) -> None:
    """Peaks by lines, a panel for each job."""
    jobs = ("tokenize_corpus", "vokenize_corpus")
    top = max(row[job][name] for row in rows for job in jobs for name in PROCESSES) / 1e6
    figure = Figure(figsize=(9, 4), dpi=120, layout="constrained")
    for axes, job in zip(figure.subplots(1, 2), jobs, strict=True):
        for name in PROCESSES:
            lines = [row["lines"] for row in rows]
            [drawn] = axes.plot(lines, [row[job][name] / 1e6 for row in rows], marker="o", label=name)
            own = [row[job][f"{name}_own"] / 1e6 for row in rows]
            axes.plot(lines, own, marker="o", linestyle="--", color=drawn.get_color(), label=f"{name}, own")
        axes.set(title=job, xlabel="lines", xscale="log", ylim=(0, 1.1 * top))
        axes.grid(alpha=0.3)
    figure.supylabel("largest resident set, MB")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2 * len(PROCESSES))
    figure.savefig(path)


def table(rows: list[dict[str, Any]]) -> str:
    """The figures in MB, as Markdown."""
    lines = ["| lines | shards | job | driver | actor | reading task | spilled |", "|---|---|---|---|---|---|---|"]
    shown = [[name, f"{name}_own"] for name in PROCESSES]
    for row in rows:
        for job in ("tokenize_corpus", "vokenize_corpus"):
            if job in row:
                peaks = " | ".join(" / ".join(f"{row[job][n] / 1e6:,.0f}" for n in names) for names in shown)
                spilled = f"{row[job]['spilled'] / 1e6:,.0f}"
                lines.append(f"| {row['lines']:,} | {row['shards']:,} | `{job}` | {peaks} | {spilled} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2048, help="of the smallest corpus")
    parser.add_argument("--lines_per_shard", type=int, default=1024)
    parser.add_argument("--most_shards", type=int, default=2000, help="of the shards that the driver is charged with")
    parser.add_argument("--output", required=True, help="the PNG")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(str(folder / "model"))
        save_keys(str(folder / "keys" / "part.arrow"))
        grown = [measure(folder, arguments.lines * factor, arguments.lines_per_shard) for factor in FACTORS]
        most = arguments.most_shards
        cut = [measure(folder, most, most // shards, has_vokens=False) for shards in (most // 100, most)]
    few, many = cut
    driver = many["tokenize_corpus"]["driver"] - few["tokenize_corpus"]["driver"]
    values = {"grown": grown, "cut": cut, "driver_bytes_per_shard": driver / (many["shards"] - few["shards"])}
    plot(grown, arguments.output)
    Path(arguments.output).with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")
    print(table([*grown, *cut]))
    print(f"{values['driver_bytes_per_shard']:,.0f} bytes of the driver for each shard")


if __name__ == "__main__":
    main()
