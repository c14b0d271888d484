"""Ready-made regions to a key bank through the job's own main, and search in what it makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_models import CAPTIONS, tiny_model_object

from jobs import embed, key_bank
from xmatch import DualEncoder
from xmatch.data.key_banks import open_key_bank
from xmatch.data.region_sources import RegionSource, open_regions
from xmatch.models.context.config import ContextConfig
from xmatch.models.towers.image import ImageTowerConfig
from xmatch.search.factored import open_factored
from xmatch.search.factored_searcher import FactoredSearcher
from xmatch.search.grouped import grouped_searcher


def prepared(folder: Path) -> tuple[str, str]:
    """A model of three views with context, and a precomputed folder of nine images."""
    regions = ImageTowerConfig(kind="regions", output="grid", width=12)
    context = ContextConfig(kind="gated_attention", heads=2, positions=True)
    model = tiny_model_object(image=regions, image_context=context, image_pooling="views", views=3, context_head=True)
    model.save_pretrained(str(folder / "model"))
    data, rng = folder / "precomp", np.random.default_rng(0)
    data.mkdir()
    (data / "test_caps.txt").write_text("".join(f"{CAPTIONS[i % 4]}\n" for i in range(9)))
    (data / "test_ids.txt").write_text("".join(f"{i}\n" for i in range(9)))
    np.save(data / "test_ims.npy", rng.standard_normal((9, 4, 12)).astype(np.float32))
    np.save(data / "test_boxes.npy", np.tile(np.array([5, 5, 20, 30], np.float32), (9, 4, 1)))
    np.save(data / "test_img_sizes.npy", np.full((9, 2), 64, np.float32))
    return str(folder / "model"), str(data)


def test_regions_need_a_place(tmp_path: Path, capsys) -> None:
    assert embed.main(["--side", "regions", "--model", "m", "--output", str(tmp_path)]) == 2
    assert "--side regions needs --regions.path" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.slow
def test_regions_become_a_bank_of_views_that_is_searched(ray_here, tmp_path: Path) -> None:
    model, data = prepared(tmp_path)
    words = ["--side", "regions", "--model", model, "--regions.path", data, "--regions.split", "test"]
    assert embed.main([*words, "--rows_per_shard", "4", "--output", str(tmp_path / "bank")]) == 0
    assert json.loads((tmp_path / "bank" / "manifest.json").read_text())["counts"] == {"images": 9}
    bank, source = open_key_bank(str(tmp_path / "bank")), open_regions(RegionSource(path=data, split="test"))
    encoder, every = DualEncoder.from_pretrained(model), np.arange(9)
    expected = encoder.encode_features(source.take(every).features, positions=source.take_positions(every))
    np.testing.assert_allclose(np.asarray(bank.rows).reshape(9, 3, 24), expected, atol=1e-5)
    words = ["--action", "factor", "--bank", str(tmp_path / "bank"), "--dim", "8", "--output", str(tmp_path / "two")]
    assert key_bank.main(words) == 0
    texts = encoder.encode_texts(CAPTIONS)
    whole = grouped_searcher(bank).search(texts, 5)
    parts = FactoredSearcher(open_factored(str(tmp_path / "two")).vectors).search(texts, 5)
    np.testing.assert_array_equal(parts.ids, whole.ids)
    np.testing.assert_array_equal(parts.scores, whole.scores)
