"""Small real tokenizers of every kind, trained on a few lines."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xmatch.data.tokenizers import train_wordpiece

TEXTS = (
    "the cat sat on the mat .",
    "I have a lovely cat, running; it's BIG and red!",
    "  two  spaces\tand a tab ",
    "Café naïve İstanbul ﬁne Ⅷ Straße",
    "日本語のテキスト 東京",
    "family 👨‍👩‍👧 and 🏳️‍🌈 flags 🇩🇪",
    "é e\u0301 \u0928\u093f ไทย",
    "x" * 130 + " tail",
    "unseen Жук ¿qué?",
)


def wordpiece() -> Any:
    """Lower-casing, without accents; what it does not know is [UNK]."""
    return train_wordpiece(TEXTS[:3], 90)


def byte_level(prefix: bool = False, trim: bool = False) -> Any:
    """Byte-level BPE as GPT-2's: every byte is a token, and some pairs are merged."""
    pairs = ["Ġ t", "h e", "Ġt he", "c a", "ca t", "Ġ a", "n d", "v e", "l o", "i n", "in g", "Ã ©", "e r"]
    merges = [tuple(pair.split()) for pair in pairs]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    core.decoder = decoders.ByteLevel()
    if trim:
        core.post_processor = processors.ByteLevel(trim_offsets=True)
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False)


def unigram() -> Any:
    """SentencePiece-like unigram pieces with a marked space before each word, in NFKC and lower case."""
    words = [f"▁{word}" for word in ("the", "cat", "a", "and", "have", "it")]
    parts = ["▁", *"abcdefghijklmnopqrstuvwxyz.,!'", "ing", "at", "ov", "viii", "fi", "東京", "\u0307"]
    scores = [("<unk>", 0.0), *((piece, -2.0) for piece in words), *((piece, -4.0) for piece in parts)]
    core = Tokenizer(models.Unigram(scores, unk_id=0))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", clean_up_tokenization_spaces=False)


def letters() -> Any:
    """One token a character, spaces too."""
    core = Tokenizer(models.WordLevel({"?": 0, **{chr(97 + i): i + 1 for i in range(26)}}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?", clean_up_tokenization_spaces=False)


KINDS = {
    "wordpiece": wordpiece,
    "byte_level": byte_level,
    "byte_level_prefixed": lambda: byte_level(prefix=True),
    "byte_level_trimmed": lambda: byte_level(trim=True),
    "unigram": unigram,
    "letters": letters,
}
