"""Saved models: what is written is read again, and what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from mvptr_cases import PHRASES, TINY, golden_inputs, golden_task, tiny_tokenizer

from alignment.mvptr.checkpoints import Saved, is_mvptr, load, read_config, save
from alignment.mvptr.heads import HeadConfig, Task, build
from alignment.mvptr.phrase_vocabulary import PhraseVocabulary
from xmatch.errors import InputError


def tiny(head: HeadConfig | None = None, **more: object) -> Saved:
    torch.manual_seed(0)
    return Saved(build(TINY, head or HeadConfig(task="pretraining")).eval(), tiny_tokenizer(), **more)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("task", get_args(Task))
def test_a_saved_model_is_read_again(tmp_path: Path, task: str) -> None:
    head = HeadConfig(task=task, outputs=5, classifier="mlp", region_score="linear", layer=1)
    saved = tiny(head, phrases=PhraseVocabulary(PHRASES), tags=("dog", "red umbrella"))
    save(str(tmp_path / "m"), saved, card="of dogs")
    again = load(str(tmp_path / "m"))
    assert (again.model.config, again.model.head, again.tags) == (TINY, head, saved.tags)
    assert again.phrases is not None and again.phrases.phrases == PHRASES
    assert again.tokenizer("a dogs [MASK]")["input_ids"] == [1, 5, 9, 3, 2]
    assert again.model.state_dict().keys() == saved.model.state_dict().keys()
    with torch.no_grad():
        found, expected = again.model.mvptr(golden_inputs())[1], saved.model.mvptr(golden_inputs())[1]
    assert torch.equal(found.sequence, expected.sequence)
    assert (tmp_path / "m" / "README.md").read_text() == "of dogs"


def test_half_precision_and_no_vocabularies(tmp_path: Path) -> None:
    save(str(tmp_path), tiny(), dtype="float16")
    again = load(str(tmp_path))
    assert again.phrases is None and again.tags == ()
    assert {p.dtype for p in again.model.parameters()} == {torch.float32}
    assert (tmp_path / "model.safetensors").stat().st_size < 30_000
    assert not again.model.training


def test_the_original_weights_survive_saving(tmp_path: Path) -> None:
    model = golden_task(HeadConfig(task="pretraining", tied=False))
    save(str(tmp_path), Saved(model, tiny_tokenizer()))
    again = load(str(tmp_path)).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


def test_a_folder_is_known_as_ours(tmp_path: Path) -> None:
    save(str(tmp_path / "m"), tiny())
    assert is_mvptr(str(tmp_path / "m"))
    assert not is_mvptr(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert not is_mvptr(str(tmp_path))
    with pytest.raises(InputError, match="no configuration of a saved MVPTR"):
        read_config(str(tmp_path))


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="id 60, but the model has 60 rows"):
        save(str(tmp_path / "m"), tiny(phrases=PhraseVocabulary({60: ("a", "b")})))
    small = build(TINY.__class__(**{**TINY.__dict__, "only_word_size": 10}), HeadConfig())
    with pytest.raises(InputError, match="22 tokens, but the model's table has 10 rows of words"):
        save(str(tmp_path / "m"), Saved(small, tiny_tokenizer()))
    assert not (tmp_path / "m").exists()
    save(str(tmp_path / "m"), tiny(phrases=PhraseVocabulary(PHRASES), tags=("dog",)))
    whole = json.loads((tmp_path / "m" / "config.json").read_text())
    edit(tmp_path / "m", model=whole["model"] | {"vocab_size": 59})
    with pytest.raises(InputError, match=r"of another shape \['mvptr.embeddings.word_embeddings.weight: \(60, 8\)"):
        load(str(tmp_path / "m"))
    edit(tmp_path / "m", model=whole["model"] | {"colour": 1})
    with pytest.raises(InputError, match="config.json' holds 'colour'"):
        load(str(tmp_path / "m"))
    edit(tmp_path / "m", model=whole["model"], head={"task": "pretraining", "glue": 1})
    with pytest.raises(InputError, match="'glue', which HeadConfig"):
        load(str(tmp_path / "m"))
    edit(tmp_path / "m", head=whole["head"], format=2)
    with pytest.raises(InputError, match="of format 1"):
        load(str(tmp_path / "m"))
    edit(tmp_path / "m", format=1)
    (tmp_path / "m" / "tags.json").write_text('{"dog": 1}')
    with pytest.raises(InputError, match="list of the names"):
        load(str(tmp_path / "m"))
    (tmp_path / "m" / "id2phrase.json").write_text('{"70": ["a", "b"]}')
    with pytest.raises(InputError, match=r"id2phrase.json', row 0: .* id 70"):
        load(str(tmp_path / "m"))
