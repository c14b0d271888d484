"""Checkpoints of the original: read strictly, known by their names, and written again as they were."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from mvptr_cases import PHRASES, TINY, golden, golden_inputs, golden_state, tiny_tokenizer, write_original

from alignment.mvptr.checkpoints import Saved, save
from alignment.mvptr.config import Lengths
from alignment.mvptr.heads import HeadConfig, MvptrForPretraining, build
from alignment.mvptr.original_checkpoints import export_state, from_pretrained, head_of, import_state, task_of
from alignment.mvptr.phrase_vocabulary import PhraseVocabulary
from alignment.mvptr.starts import for_task
from xmatch.errors import InputError

QA = ["qa_head.bias", "qa_head.weight"]
HEADS = [
    HeadConfig(),
    HeadConfig(task="pretraining"),
    HeadConfig(task="pretraining", tied=False),
    HeadConfig(task="pretraining", questions=True),
    HeadConfig(task="retrieval"),
    HeadConfig(task="retrieval", classifier="mlp", hidden_scale=3),
    HeadConfig(task="vqa", outputs=7),
    HeadConfig(task="vqa", outputs=7, vqa_from="pooled_and_sides"),
    HeadConfig(task="vqa", outputs=7, vqa_from="pooled_and_sides", classifier="mlp", hidden_scale=3),
    HeadConfig(task="classification", outputs=3),
    HeadConfig(task="classification", outputs=4, classifier="mlp"),
    HeadConfig(task="refexp"),
]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_golden_weights_come_in_and_go_out_as_they_were() -> None:
    for name, task, left in (
        ("tiny_weights", "pretraining", QA),
        ("retrieval_head", "retrieval", []),
        ("re_head", "refexp", []),
    ):
        state = golden_state(name)
        imported = import_state(state, TINY, "x.bin")
        assert (imported.model.head.task, imported.left_out) == (task, left)
        assert same(export_state(imported.model), {key: value for key, value in state.items() if key not in left})


@pytest.mark.parametrize("head", HEADS)
def test_ours_become_the_originals_and_ours_again(head: HeadConfig) -> None:
    torch.manual_seed(1)
    model = build(TINY, head)
    if head.task == "pretraining" and not head.tied:
        model.words.rows.data.add_(1.0)
    state = export_state(model)
    known = ("bert.", "cls.", "half_mlm.", "classifier.", "logit_scale", *(["qa_seq_relation."] * head.questions))
    known += ("single_mapping.",) if head.vqa_from == "pooled_and_sides" else ()
    assert all(name.startswith(known) for name in state)
    imported = import_state(state, TINY, "x.bin")
    assert imported.model.head == head
    assert same(imported.model.state_dict(), model.state_dict())
    assert not imported.left_out


def test_vqa_of_the_pooled_output_comes_in_as_the_classification_that_it_is() -> None:
    """Its names are those of visual entailment; as a start it gives its head to VQA."""
    pooled = HeadConfig(task="vqa", outputs=7, vqa_from="pooled", classifier="mlp")
    model = build(TINY, pooled)
    imported = import_state(export_state(model), TINY, "x.bin").model
    assert imported.head == HeadConfig(task="classification", outputs=7, classifier="mlp")
    assert same(for_task(Saved(imported, tiny_tokenizer()), pooled).state_dict(), model.state_dict())


def test_right_or_wrong_answers_come_in_and_go_out() -> None:
    """The head of the original's model for questions, which its classifier of answers is not."""
    state = golden_state() | {"qa_seq_relation.weight": torch.randn(2, 8), "qa_seq_relation.bias": torch.randn(2)}
    imported = import_state(state, TINY, "x.bin")
    assert imported.model.head.questions and imported.left_out == QA
    assert same(export_state(imported.model), {key: value for key, value in state.items() if key not in QA})
    with pytest.raises(InputError, match="1 missing: qa_seq_relation.bias"):
        import_state({key: value for key, value in state.items() if key != "qa_seq_relation.bias"}, TINY, "x.bin")


def test_rows_that_parted_can_be_tied_again() -> None:
    imported = import_state(golden_state(), TINY, "x.bin", words="tied")
    assert imported.model.head.tied
    assert imported.left_out == [*QA, "cls.predictions.decoder.weight", "half_mlm.decoder.weight"]
    assert isinstance(imported.model, MvptrForPretraining)
    assert imported.model.words.rows is None


def test_names_say_the_task_and_the_head() -> None:
    assert task_of({"bert.txt_proj": torch.ones(1)}) == "none"
    assert head_of(golden_state("re_head")).task == "refexp"
    assert not head_of(golden_state()).tied


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bert.txt_proj": None}, r"1 missing: bert.txt_proj"),
        ({"bert.code_embeddings.weight": (3, 3)}, r"1 unexpected: bert.code_embeddings.weight"),
        ({"bert.img_embedding.weight": (8, 12)}, r"bert.img_embedding.weight is \(8, 12\), expected \(8, 10\)"),
        (
            {"bert.embeddings.word_embeddings.weight": (61, 8)},
            "has 61 rows of embeddings, the configuration vocab_size 60",
        ),
    ],
)
def test_differences_are_told_in_the_originals_names(change: dict[str, tuple[int, int] | None], said: str) -> None:
    state = golden_state()
    for name, shape in change.items():
        if shape is None:
            del state[name]
        else:
            state[name] = torch.ones(shape)
    with pytest.raises(InputError, match=said):
        import_state(state, TINY, "x.bin")


def test_a_folder_of_the_original_gives_its_numbers(tmp_path: Path) -> None:
    folder = write_original(tmp_path / "base", golden_state())
    PhraseVocabulary(PHRASES).write(str(tmp_path / "base" / "id2phrase.json"))
    saved = from_pretrained(folder, lengths=TINY.lengths)
    assert dataclasses.replace(saved.model.config, dropout=0.0) == TINY
    assert saved.phrases is not None and saved.phrases.phrases == PHRASES
    assert saved.tokenizer("a dogs [MASK]")["input_ids"] == [1, 5, 9, 3, 2]
    with torch.no_grad():
        found = saved.model.mvptr(golden_inputs())[1].pooled
    expected = torch.tensor(golden("forward")["outputs"]["pooled_output"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1.2e-5)
    (tmp_path / "base" / "id2phrase.json").rename(tmp_path / "phrases.json")
    assert from_pretrained(folder, lengths=TINY.lengths).phrases is None
    assert from_pretrained(folder, lengths=TINY.lengths, phrases=str(tmp_path / "phrases.json")).phrases is not None


def test_a_model_of_ours_keeps_its_stored_lengths(tmp_path: Path) -> None:
    save(str(tmp_path), Saved(build(TINY, HeadConfig()), tiny_tokenizer()))
    assert from_pretrained(str(tmp_path), lengths=TINY.lengths).model.config == TINY
    with pytest.raises(InputError, match="which is stored with it; asked for was"):
        from_pretrained(str(tmp_path), lengths=Lengths(text=8))


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"img_layer_norm_eps": 1e-5}, {"type_vocab_size": 3}])
def test_another_form_of_blocks_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = write_original(tmp_path, golden_state(), **changes)
    with pytest.raises(InputError, match=f"{next(iter(changes))} is .*, but the blocks here have"):
        from_pretrained(folder, lengths=TINY.lengths)


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    folder = write_original(tmp_path / "base", golden_state())
    with pytest.raises(InputError, match="max_positions is 24"):
        from_pretrained(folder, "pipeline")
    with pytest.raises(InputError, match="no published lengths are called 'mscoco'"):
        from_pretrained(folder, "mscoco")
    (tmp_path / "base" / "vocab.txt").unlink()
    with pytest.raises(InputError, match="no vocab.txt"):
        from_pretrained(folder, lengths=TINY.lengths)
    (tmp_path / "base" / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="do not exist"):
        from_pretrained(folder, lengths=TINY.lengths)
    (tmp_path / "base" / "config.json").write_text("{}")
    torch.save(golden_state(), tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(InputError, match="config.json is not that of an MVPTR"):
        from_pretrained(folder, lengths=TINY.lengths)
