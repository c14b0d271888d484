"""Where models begin: with other models' encoders, with a BERT, with the word head."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from mvptr_cases import TINY, WORDS, golden_task, tiny_tokenizer
from transformers import BertConfig, BertForPreTraining

from alignment.mvptr.checkpoints import Saved
from alignment.mvptr.config import Lengths
from alignment.mvptr.heads import HeadConfig, MvptrForPretraining, MvptrForVqa, build
from alignment.mvptr.phrase_vocabulary import PhraseVocabulary
from alignment.mvptr.starts import answers_from_words, for_task, from_bert
from xmatch.errors import InputError

SIZES = dataclasses.replace(TINY, only_word_size=len(WORDS))


def write_bert(folder: Path, **changes: Any) -> BertForPreTraining:
    torch.manual_seed(4)
    sizes = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(WORDS), max_position_embeddings=24, **(sizes | changes))
    bert = BertForPreTraining(config)
    bert.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return bert


def test_a_task_begins_with_the_encoders_of_a_saved_model() -> None:
    pretrained = Saved(golden_task(HeadConfig(task="pretraining", tied=False)), tiny_tokenizer())
    longer = dataclasses.replace(TINY, lengths=Lengths(text=7, phrases=3, tags=5, regions=6), dropout=0.3)
    model = for_task(pretrained, HeadConfig(task="retrieval"), longer)
    old, new = pretrained.model.state_dict(), model.state_dict()
    assert all(torch.equal(new[name], old[name]) for name in new if not name.startswith("classifier"))
    assert (model.config, model.dropout.p) == (longer, 0.3)
    vqa = for_task(pretrained, HeadConfig(task="vqa", outputs=3))
    assert all(torch.equal(vqa.state_dict()[name], old[name]) for name in old if name.startswith("mvptr."))


def test_the_same_task_keeps_its_head() -> None:
    retrieval = Saved(golden_task(HeadConfig(task="retrieval"), "retrieval_head"), tiny_tokenizer())
    again = for_task(retrieval, HeadConfig(task="retrieval"))
    assert torch.equal(again.classifier.weight, retrieval.model.classifier.weight)
    wider = for_task(retrieval, HeadConfig(task="retrieval", classifier="mlp"))
    assert len(wider.classifier) == 3


def test_a_head_of_another_form_begins_anew() -> None:
    torch.manual_seed(5)
    old = Saved(build(TINY, HeadConfig(task="vqa", outputs=3, vqa_from="pooled", classifier="mlp")), tiny_tokenizer())
    sides = for_task(old, HeadConfig(task="vqa", outputs=3, vqa_from="pooled_and_sides", classifier="mlp"))
    assert not torch.equal(sides.classifier[2].weight, old.model.classifier[2].weight)  # of one shape, and no half head
    entailment = for_task(old, HeadConfig(task="classification", outputs=3, classifier="mlp"))
    assert torch.equal(entailment.classifier[2].weight, old.model.classifier[2].weight)


def test_encoders_of_another_size_are_refused() -> None:
    saved = Saved(build(TINY, HeadConfig()), tiny_tokenizer())
    with pytest.raises(InputError, match="has region_width 10, the new one 2054"):
        for_task(saved, HeadConfig(), dataclasses.replace(TINY, region_width=2054))


def test_answers_begin_with_their_words() -> None:
    pretrained = Saved(golden_task(HeadConfig(task="pretraining", tied=False)), tiny_tokenizer())
    source = pretrained.model
    model = for_task(pretrained, HeadConfig(task="vqa", outputs=3))
    assert isinstance(model, MvptrForVqa) and isinstance(source, MvptrForPretraining)
    before = model.answers.weight[1].clone()
    assert answers_from_words(pretrained, model, ["red umbrella", "", "dog"]) == 2
    red, umbrella, dog = (WORDS.index(word) for word in ("red", "umbrella", "dog"))
    torch.testing.assert_close(model.answers.weight[0], source.words.rows[[red, umbrella]].mean(0))
    torch.testing.assert_close(model.answers.bias[2], source.words.bias[dog])
    assert torch.equal(model.answers.weight[1], before)
    states = torch.randn(2, 8)
    torch.testing.assert_close(
        model.answers(model.transform(states))[:, 2], source.word_logits(states)[:, dog], rtol=1e-5, atol=1e-6
    )
    with pytest.raises(InputError, match="3 answers, but 1"):
        answers_from_words(pretrained, model, ["dog"])
    with pytest.raises(InputError, match="got vqa and vqa"):
        answers_from_words(pretrained._replace(model=model), model, ["dog"] * 3)
    for form in ("pooled", "pooled_and_sides"):
        other = for_task(pretrained, HeadConfig(task="vqa", outputs=3, vqa_from=form))
        with pytest.raises(InputError, match=f"vqa_from={form} has no transform that the word head could begin"):
            answers_from_words(pretrained, other, ["dog"] * 3)


def test_a_bert_begins_every_encoder_and_phrases_begin_as_their_words(tmp_path: Path) -> None:
    bert = write_bert(tmp_path)
    phrases = PhraseVocabulary({8: ("dog",), 22: ("dog", "red"), 59: ("cat", "on", "ground")})
    saved = from_bert(str(tmp_path), SIZES, phrases)
    model, blocks = saved.model.mvptr, bert.bert.encoder.layer
    for stack, first in ((model.text_encoder, 0), (model.vision_encoder, 0), (model.cross_encoder, 2)):
        for ours, theirs in zip(stack.layer, blocks[first : first + 2], strict=True):
            assert all(torch.equal(v, theirs.state_dict()[n]) for n, v in ours.state_dict().items())
    table, words = model.embeddings.word_embeddings.weight, bert.bert.embeddings.word_embeddings.weight
    assert torch.equal(table[:22], words)
    torch.testing.assert_close(table[22], words[[8, 17]].mean(0))
    torch.testing.assert_close(table[59], words[[10, 11, 12]].mean(0))
    assert torch.equal(model.pooler.dense.weight, bert.bert.pooler.dense.weight)
    assert isinstance(saved.model, MvptrForPretraining)
    for part in (saved.model.words, saved.model.tags):
        assert torch.equal(part.transform.dense.weight, bert.cls.predictions.transform.dense.weight)
        assert torch.equal(part.bias, bert.cls.predictions.bias)
    states = torch.randn(2, 8)
    torch.testing.assert_close(saved.model.word_logits(states), bert.cls.predictions(states))


def test_a_bert_without_heads_and_with_early_names_is_one_too(tmp_path: Path) -> None:
    bert = write_bert(tmp_path)
    from safetensors.torch import save_file

    early = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value.clone()
        for name, value in bert.bert.state_dict().items()
        if not name.startswith("pooler")
    }
    save_file(early, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = from_bert(str(tmp_path), SIZES).model.mvptr
    assert torch.equal(model.embeddings.LayerNorm.weight, bert.bert.embeddings.LayerNorm.weight)
    assert torch.equal(model.text_encoder.layer[1].output.dense.weight, bert.bert.encoder.layer[1].output.dense.weight)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": 16}, "hidden_size 16, but the configuration has hidden_size 8"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 2"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
    ],
)
def test_a_bert_of_another_size_is_refused(tmp_path: Path, changes: dict[str, int], said: str) -> None:
    write_bert(tmp_path, **changes)
    with pytest.raises(InputError, match=said):
        from_bert(str(tmp_path), SIZES)


def test_what_is_no_bert_of_these_words_is_refused(tmp_path: Path) -> None:
    write_bert(tmp_path)
    with pytest.raises(InputError, match="has 22 words, the configuration only_word_size 40"):
        from_bert(str(tmp_path), TINY)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match="is no BERT: its config.json says 'gpt2'"):
        from_bert(str(tmp_path), SIZES)
