"""Sentences to phrases, one shard at a time; and the lists of text and image that MVPTR takes as data of one's own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from alignment.entities.entity_tables import string_ids
from alignment.entities.extraction import MAX_CHARACTERS
from alignment.entities.tagged import Tagger
from alignment.entities.taggers import load_same_tagger
from alignment.mvptr.phrase_vocabulary import MIN_SENTENCES
from alignment.mvptr.phrases import Agreement, Phrase, agreement, phrases_of
from xmatch.data import files
from xmatch.data.steps import StepOutput, quarantine_table
from xmatch.errors import InputError

PHRASES = pa.list_(pa.list_(pa.string()))
PHRASE_TABLE = pa.schema(
    [
        pa.field("caption_id", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("caption", pa.string(), nullable=False),
        pa.field("phrases", PHRASES, nullable=False),
        pa.field("parsed", PHRASES),
    ]
)
"""One row a sentence, those without phrases too. `parsed` is what the parser finds where `phrases` were imported, and
null where they were not. Each phrase is a list of one to three texts."""


@dataclass(frozen=True, kw_only=True)
class PhraseConfig:
    """How phrases are found, and which make the vocabulary."""

    tagger: str = "auto"
    """`textblob`, whose lexicon is in its package; or a spaCy model by name or folder. `auto`: spaCy where one of its
    English models is installed, else TextBlob. Nothing is downloaded."""
    tuples: str = ""
    """JSON of scene-graph tuples as SPICE writes it, by caption id; with `data` its ids are IMAGE_0, IMAGE_1 and so on,
    in the order of an image's texts. The phrases are these, and the parser's are set beside them."""
    tokenizer: str = ""
    """Tokenizer of the model, folder or hub name: makes the vocabulary of phrases; empty: none."""
    min_sentences: int = MIN_SENTENCES
    """Sentences that a phrase of the vocabulary must be in."""
    per_shard: int = 8192
    """Sentences in one shard, the unit of resume."""

    def __post_init__(self) -> None:
        """Refuse what finds nothing."""
        if self.min_sentences < 1 or self.per_shard < 1:
            raise InputError("phrases.min_sentences and phrases.per_shard must be at least 1.")


class ExtractPhrases:
    """A step: rows of `extraction.CAPTION_SCHEMA` to rows of PHRASE_TABLE; null tuples: the parser finds the phrases.

    Args:
        tagger: `textblob`, or a spaCy model, never `auto`: every worker must take the same.
        identity: of the tagger, which this worker's must have; empty: any.
    """

    def __init__(self, tagger: str, identity: str = "") -> None:
        self.tagger, self.identity = tagger, identity
        self._loaded: Tagger | None = None

    def __call__(self, shard_id: str, rows: pa.Table) -> StepOutput:
        """Phrases of one shard of sentences, in row order; texts that are documents are quarantined."""
        tagger = self._tagger()
        broken: list[tuple[str, str, str]] = []
        made: list[tuple[Any, ...]] = []
        for row in rows.to_pylist():
            if len(row["text"]) > MAX_CHARACTERS:
                reason = f"{len(row['text']):,} characters, more than the {MAX_CHARACTERS:,} of a sentence"
                broken.append((row["id"], shard_id, reason))
                continue
            parsed = [list(one) for one in phrases_of(row["text"], tagger)]
            own = (parsed, None) if row["tuples"] is None else (row["tuples"], parsed)
            made.append((row["id"], row["image_id"], row["text"], *own))
        columns = list(zip(*made, strict=True)) or [()] * len(PHRASE_TABLE)
        arrays = [pa.array(list(column), field.type) for column, field in zip(columns, PHRASE_TABLE, strict=True)]
        counts = {
            "sentences": len(made),
            "sentences_without_phrases": sum(not row[3] for row in made),
            "phrases": sum(len(row[3]) for row in made),
        }
        return StepOutput(pa.table(arrays, schema=PHRASE_TABLE), counts, quarantine_table(broken))

    def _tagger(self) -> Tagger:
        if self._loaded is None:
            self._loaded = load_same_tagger(self.tagger, self.identity)
        return self._loaded


def phrase_files(place: str) -> list[str]:
    """The Parquet files of a table of phrases in name order: a file, a folder, or a run of jobs/extract_phrases.py.

    Raises:
        InputError: none is there.
    """
    if not files.is_folder(place):
        return [place]
    found = files.list_files(files.join(place, "shards"), ".parquet") or files.list_files(place, ".parquet")
    if not found:
        raise InputError(f"no Parquet file of phrases in {place!r}; make them with jobs/extract_phrases.py.")
    return found


def read_phrases(place: str) -> pa.Table:
    """All phrases of a place, as `phrase_files` finds it, in PHRASE_TABLE.

    Raises:
        InputError: nothing is there, or a file has other columns.
    """
    return pa.concat_tables([read_phrase_file(path) for path in phrase_files(place)])


def read_phrase_file(path: str) -> pa.Table:
    """One file of phrases."""
    table = files.read_parquet(path)
    if not set(PHRASE_TABLE.names) <= set(table.column_names):
        raise InputError(f"{path!r} is no table of phrases; expected the columns {', '.join(PHRASE_TABLE.names)}.")
    return table.select(PHRASE_TABLE.names).cast(PHRASE_TABLE)


def phrases_by_caption(place: str) -> dict[str, list[Phrase]]:
    """The phrases of every sentence by its id."""
    table = read_phrases(place)
    lists = ([tuple(one) for one in own] for own in table.column("phrases").to_pylist())
    return dict(zip(table.column("caption_id").to_pylist(), lists, strict=True))


def count_sentences(place: str) -> Counter[Phrase]:
    """In how many sentences of a table each phrase is; one file in memory at a time."""
    found: Counter[Phrase] = Counter()
    for path in phrase_files(place):
        for own in read_phrase_file(path).column("phrases").to_pylist():
            found.update({tuple(one) for one in own})
    return found


def agreements(place: str) -> list[tuple[str, Agreement]]:
    """Caption id and agreement of every sentence whose phrases were imported."""
    return [
        (row["caption_id"], agreement(row["parsed"], row["phrases"]))
        for path in phrase_files(place)
        for row in read_phrase_file(path).to_pylist()
        if row["parsed"] is not None
    ]


def read_pairs(path: str) -> list[dict[str, Any]]:
    """A JSON list of objects with `text` and `image_id`, and whatever else, such as `label`.

    Raises:
        InputError: it has another form; names the row.
    """
    content = files.read_json(path)
    if not isinstance(content, list) or not content:
        raise InputError(f"{path!r} is no list of pairs: expected a JSON list of objects with text and image_id.")
    for row, one in enumerate(content):
        if not isinstance(one, dict) or not isinstance(one.get("text"), str) or "image_id" not in one:
            raise InputError(f"{path!r}, row {row}: expected an object with text and image_id, got {one!r:.80}.")
    string_ids([one["image_id"] for one in content], path, "image_id")
    return content


def pair_ids(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """An id for each pair: its image's, and how many pairs of that image come before, as IMAGE_0.

    The original gives SPICE these ids.
    """
    seen: Counter[str] = Counter()
    found = []
    for pair in pairs:
        image_id = str(pair["image_id"])
        found.append(f"{image_id}_{seen[image_id]}")
        seen[image_id] += 1
    return found


def write_processed(path: str, pairs: Sequence[Mapping[str, Any]], phrases: Mapping[str, Sequence[Phrase]]) -> None:
    """Pairs again, in their order and with all they hold, and `phrases` behind.

    Args:
        path: of the JSON written.
        pairs: as `read_pairs` gives them.
        phrases: by the ids of `pair_ids`; a pair without entry has none.
    """
    done = [
        {**pair, "phrases": [list(one) for one in phrases.get(pair_id, ())]}
        for pair_id, pair in zip(pair_ids(pairs), pairs, strict=True)
    ]
    files.write_bytes(path, (json.dumps(done, ensure_ascii=False, indent=1) + "\n").encode())
