"""WordPiece vocabularies learnt from captions."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
"""In the order of their ids, from 0."""


def train_wordpiece(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A lower-casing BERT-style WordPiece tokenizer of the texts' words.

    The letters within words get their ids first, in their order. The trainer would give them ids in the order of a
    hash table with a new seed in every process, and break ties between merges by those ids.

    Args:
        texts: what the vocabulary is learnt from; equal texts in equal order give an equal vocabulary.
        vocab_size: words at most, special tokens included.

    Returns:
        A fast tokenizer that puts [CLS] before and [SEP] after each text.
    """
    texts = list(texts)
    learner = _wordpiece(models.WordPiece(unk_token="[UNK]"))
    words = (w for text in texts for w, _ in _pieces(learner, text))
    inner = sorted({f"##{letter}" for word in words for letter in word[1:]})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *inner], show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    vocabulary = learner.get_vocab()
    return wrap_wordpiece(_wordpiece(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)))


def _wordpiece(model: models.WordPiece) -> Tokenizer:
    """A core that cuts text as BERT does, without accents and capitals."""
    core = Tokenizer(model)
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return core


def _pieces(core: Tokenizer, text: str) -> list[tuple[str, tuple[int, int]]]:
    pieces: list[tuple[str, tuple[int, int]]] = core.pre_tokenizer.pre_tokenize_str(core.normalizer.normalize_str(text))
    return pieces


def wrap_wordpiece(core: Tokenizer) -> PreTrainedTokenizerFast:
    """A trained or hand-made WordPiece core with BERT's special tokens around each text."""
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, core.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    core.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        clean_up_tokenization_spaces=False,
    )
