"""The whole road on the example data: photos to keys, text to tokens, tokens to vokens, and a page to look at.

It calls the jobs as their command lines do, within one Ray, and prints each command, so that any of them can be run by
hand.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import embed, eval_retrieval, tokenize_corpus, vokenize_corpus
from raydeploy.connect import RayConfig, connect

EXAMPLES = Path(__file__).resolve().parent
OUTPUT = EXAMPLES.parent / "demo-output"
MATCHER = str(EXAMPLES / "matcher")
CPUS = ["--ray.cpus_per_actor", "2"]


def commands(output: Path) -> list[tuple[str, Callable[[Sequence[str]], int], list[str]]]:
    """(name, main, arguments) of each job of the road."""
    photos, captions = str(EXAMPLES / "photos"), str(EXAMPLES / "captions.json")
    keys, tokens = str(output / "keys"), str(output / "tokens")
    images = ["--images.root", photos, "--images.set_name", "coco_examples"]
    text = ["--corpus.path", str(EXAMPLES / "text" / "sentences.txt"), "--lines_per_shard", "128"]
    data = ["--data.captions", captions, "--data.images", photos, "--data.split", "test"]
    vokenize = ["--vokenize.level", "both", "--vokenize.top_k", "3", "--vokenize.threads", "2"]
    credits = ["--page.credits", str(EXAMPLES / "photos.json"), "--page.max_lines", "500"]
    return [
        ("embed", embed.main, ["--side", "image", "--model", MATCHER, *images, "--output", keys, *CPUS]),
        ("tokenize_corpus", tokenize_corpus.main, [*text, "--tokenizer", MATCHER, "--output", tokens, *CPUS]),
        ("eval_retrieval", eval_retrieval.main, ["--model", MATCHER, *data, "--output", str(output / "eval"), *CPUS]),
        (
            "vokenize_corpus",
            vokenize_corpus.main,
            ["--tokens", tokens, "--keys", keys, "--model", MATCHER, "--output", str(output / "vokens")]
            + [*vokenize, *credits, *CPUS],
        ),
    ]


def main(output: Path = OUTPUT) -> int:
    """Run the road; the exit code of the first job that fails, or 0."""
    started = time.monotonic()
    with connect(RayConfig(actors=1, cpus_per_actor=2)):
        for name, job, arguments in commands(output):
            print(f"\n$ python jobs/{name}.py {shlex.join(arguments)}", flush=True)
            code = job(arguments)
            if code:
                return code
    count = len(list((EXAMPLES / "photos").glob("*.jpg")))
    figures = json.loads((output / "eval" / "retrieval.json").read_text())["figures"]
    run = json.loads((output / "vokens" / "run" / "report.json").read_text())
    print(f"\nDone in {time.monotonic() - started:.0f} s.")
    print(f"Retrieval on the {count} example photos, which the matcher never saw:")
    print(f"  text to image R@1 {figures['t2i_recall_at_1']:.1f}, R@10 {figures['t2i_recall_at_10']:.1f}")
    print(f"  image to text R@1 {figures['i2t_recall_at_1']:.1f}, R@10 {figures['i2t_recall_at_10']:.1f}")
    print(f"Throughput of the vokenizer, its start included: {run['rows'].get('throughput', 'all were done before')}")
    print(f"The page: {output / 'vokens' / 'page.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
