"""Words and their vocabularies, as SCAN, VSE++ and VSE-infinity make them, without downloads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from nltk.tokenize.destructive import NLTKWordTokenizer
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast

from xmatch.data import files
from xmatch.errors import InputError

PAD, START, END, UNKNOWN, MASK = "<pad>", "<start>", "<end>", "<unk>", "<mask>"
SPECIAL_WORDS = (PAD, START, END, UNKNOWN)
"""In the order of their ids, from 0."""
MIN_COUNT = 4
"""Times a word must occur to get an id of its own."""

_RULES = NLTKWordTokenizer()


class WordVocabulary(NamedTuple):
    """Words in the order of their ids, from 0: V words, the four special ones first."""

    words: tuple[str, ...]


def split_words(text: str) -> list[str]:
    """The words of a caption: lower-cased, then NLTK's word rules over the whole caption.

    The originals first cut the caption into sentences with a trained model that must be downloaded; the rules alone
    keep a full stop that ends an inner sentence on its word ("a dog. it runs." -> "dog.").
    """
    words: list[str] = _RULES.tokenize(text.lower())
    return words


def build_vocabulary(captions: Iterable[str], min_count: int = MIN_COUNT) -> WordVocabulary:
    """The words of the captions that occur at least `min_count` times, in the order of their first occurrence.

    Raises:
        InputError: `min_count` is below 1.
    """
    if min_count < 1:
        raise InputError(f"min_count must be at least 1, got {min_count}.")
    counts = Counter(word for caption in captions for word in split_words(caption))
    kept = (word for word, count in counts.items() if count >= min_count and word not in SPECIAL_WORDS)
    return WordVocabulary((*SPECIAL_WORDS, *kept))


def vocabulary_of(content: Any, where: str) -> WordVocabulary:
    """The vocabulary in a SCAN object {"word2idx": ..., "idx2word": ..., "idx": ...}; keys of idx2word may be text.

    Raises:
        InputError: a part is missing, the two maps disagree, ids are not 0 to V - 1, or the special words are not the
            first four; names `where`.
    """
    if not isinstance(content, dict) or not isinstance(content.get("word2idx"), dict):
        raise InputError(f"{where!r} is no vocabulary: expected an object with word2idx, idx2word and idx.")
    ids = content["word2idx"]
    try:
        words = {int(index): word for index, word in content.get("idx2word", {}).items()}
        size = int(content.get("idx", len(words)))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where!r}: idx2word must map ids to words, and idx count them ({error}).") from error
    if not len(words) == len(ids) == size:
        raise InputError(
            f"{where!r} is no whole vocabulary: {len(ids)} words in word2idx, {len(words)} in idx2word and idx {size}; "
            "all three must agree."
        )
    for index in range(size):
        word = words.get(index)
        if not isinstance(word, str) or ids.get(word) != index:
            raise InputError(
                f"{where!r}, id {index}: idx2word has {word!r}, to which word2idx gives another id or none."
            )
    found = tuple(words[index] for index in range(size))
    if found[: len(SPECIAL_WORDS)] != SPECIAL_WORDS:
        raise InputError(f"{where!r}: the first words must be {', '.join(SPECIAL_WORDS)}, got {found[:4]}.")
    return WordVocabulary(found)


def read_vocabulary(path: str) -> WordVocabulary:
    """A SCAN vocabulary JSON.

    Raises:
        InputError: it is not there or not one.
    """
    return vocabulary_of(files.read_json(path), path)


def write_vocabulary(path: str, vocabulary: WordVocabulary) -> None:
    """Write a vocabulary as SCAN's JSON, which the originals read."""
    words = vocabulary.words
    files.write_json(
        path,
        {
            "word2idx": {word: index for index, word in enumerate(words)},
            "idx2word": {str(index): word for index, word in enumerate(words)},
            "idx": len(words),
        },
    )


def wrap_words(vocabulary: WordVocabulary, mask: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of word lists, to be called with `is_split_into_words=True` on the lists of `split_words`.

    Args:
        vocabulary: V words.
        mask: append `<mask>` as the last id, V, as VSE-infinity's BiGRU does for its word augmentation.

    Returns:
        A fast tokenizer that puts <start> before and <end> after each caption; unknown words are <unk>.
    """
    words = vocabulary.words
    if mask and MASK not in words:
        words = (*words, MASK)
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    core.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        special_tokens=[(name, core.token_to_id(name)) for name in (START, END)],
    )
    masks = {"mask_token": MASK} if mask else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        **masks,
    )
