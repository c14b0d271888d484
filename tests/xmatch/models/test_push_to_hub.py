from __future__ import annotations

from pathlib import Path
from unittest.mock import MagicMock

import pytest
from huggingface_hub import hub_mixin
from small_models import tiny_model_object

from xmatch import DualEncoder

FACTS = {"trained_on": "COCO"}


@pytest.fixture
def pushed(tmp_path: Path, monkeypatch) -> Path:
    """Where a stand-in for the hub puts what is uploaded."""
    folder, api = tmp_path / "hub", MagicMock()
    api.create_repo.return_value.repo_id = "someone/matcher"
    api.upload_folder.side_effect = lambda folder_path, **_: Path(folder_path).rename(folder)
    monkeypatch.setattr(hub_mixin, "HfApi", lambda token=None: api)
    return folder


@pytest.mark.parametrize(
    "facts",
    [None, {}, FACTS],
)
def test_everything_that_a_model_needs_is_pushed(pushed: Path, facts) -> None:
    model = tiny_model_object()
    model.push_to_hub("someone/matcher", model_card_kwargs=facts)
    assert {p.name for p in pushed.iterdir()} >= {
        *("config.json", "model.safetensors", "text_config.json", "tokenizer.json", "tokenizer_config.json"),
        "README.md",
    }
    card = (pushed / "README.md").read_text()
    assert "library_name: vokenray" in card
    assert "DualEncoder.from_pretrained" in card
    assert ("trained_on: COCO" in card) == (facts == FACTS)
    back = DualEncoder.from_pretrained(pushed)
    assert back.encode_texts(["the cat"]).tolist() == model.encode_texts(["the cat"]).tolist()
