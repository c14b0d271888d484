"""What the page of a vokenized corpus shows: confident sentences, doubtful ones, and the images used most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa

from xmatch.pages.cards import Card, Match, Page, Photo, Section, Tally, Token
from xmatch.pages.photos import thumbnail

LEAST_SHOWN, MOST_USED = 12, 24


@dataclass(frozen=True, kw_only=True)
class PageConfig:
    """What the page shows."""

    write: bool = True
    """Write page.html beside the vokens."""
    max_lines: int = 400
    """Lines shown, from the beginning of the corpus."""
    confident_score: float = 0.5
    """Score of the best image from which a sentence counts as confident."""
    credits: str = ""
    """JSON file with a list of {file_name, credit, link}, for the photos' attribution."""


class Line(NamedTuple):
    """A line of the corpus as the page needs it; tokens have (start, end, voken, score)."""

    text: str
    tokens: Sequence[tuple[int, int, int, float]]
    matches: Sequence[tuple[int, float]]


def page_lines(tokens: pa.Table, vokens: pa.Table, top_k: int) -> list[Line]:
    """Lines of a token shard and its voken shard; lines without tokens are left out.

    Args:
        tokens: TOKEN_SCHEMA.
        vokens: VOKEN_SCHEMA, the same lines; a sentence's images are those of its first piece.
        top_k: images per query.
    """
    lines = []
    for token, voken in zip(tokens.to_pylist(), vokens.to_pylist(), strict=True):
        if not token["token_ids"]:
            continue
        ids, scores = (voken[name] or [None] * 0 for name in ("vokens", "scores"))
        spans = zip(token["starts"], token["ends"], ids[::top_k], scores[::top_k], strict=False)
        whole = zip(voken["sentence_vokens"] or (), voken["sentence_scores"] or (), strict=True)
        matches = list(whole)[:top_k] or _commonest(ids[::top_k], scores[::top_k])
        lines.append(Line(token["text"], [(s, e, i, x) for s, e, i, x in spans], matches))
    return lines


def _commonest(vokens: Sequence[int], scores: Sequence[float]) -> list[tuple[int, float]]:
    """Where only tokens were asked for: the images most tokens chose, with the best score among them."""
    best = {voken: max(s for v, s in zip(vokens, scores, strict=True) if v == voken) for voken in set(vokens)}
    return [(voken, best[voken]) for voken, _ in Counter(vokens).most_common(3)]


def build_page(
    lines: Sequence[Line],
    uris: Sequence[str],
    names: Sequence[str],
    figures: Sequence[tuple[str, str]],
    config: PageConfig,
    credits: Mapping[str, tuple[str, str]],
) -> Page:
    """The page of a corpus's first lines.

    Args:
        lines: what to show.
        uris: where each image of the key bank is.
        names: what each is called.
        figures: (name, value) pairs for the head of the page.
        config: what counts as confident.
        credits: (credit, link) by the end of an image's uri.
    """
    shown = sorted(lines, key=lambda line: -line.matches[0][1] if line.matches else 0.0)
    used = Counter(token[2] for line in lines for token in line.tokens)
    rows = sorted({m[0] for line in lines for m in line.matches} | set(used))
    place = {row: number for number, row in enumerate(rows)}
    photos = [_photo(place[row], uris[row], names[row], credits) for row in rows]
    confident = [line for line in shown if line.matches and line.matches[0][1] >= config.confident_score]
    share = len(confident) / max(1, len(shown))
    doubtful = shown[len(confident) :]
    lead = (
        f"{len(confident)} of {len(shown)} sentences ({share:.0%}) have an image scoring "
        f"{config.confident_score:.2f} or more; images for the rest are mostly "
        "arbitrary. Point at a word, or tap it, to see its own image."
    )
    least = doubtful[::-1][:LEAST_SHOWN]
    rest = doubtful[: max(0, len(doubtful) - len(least))]
    sections = [Section("Confident sentences", lead, [_card(line, place) for line in confident])]
    if rest:
        text = "Below the line, best first. Most of these sentences are about things that no image of the bank shows."
        sections.append(Section("In between", text, [_card(line, place) for line in rest], shown=6))
    if least:
        text = "Here the bank has nothing to offer: the scores say so."
        sections.append(Section("Least confident sentences", text, [_card(line, place) for line in least]))
    tallies = [Tally(place[row], count) for row, count in used.most_common(MOST_USED)]
    return Page(
        title="Sentences and the images found for them",
        lead="Every sentence was matched with every image of the key bank by one dual encoder; no sentence was written "
        "for any of the images. A score is the cosine between the two, 1 at most: it is shown everywhere, because a "
        "low one means that nothing fits.",
        figures=figures,
        sections=sections,
        photos=photos,
        tallies=tallies,
    )


def _photo(number: int, uri: str, name: str, credits: Mapping[str, tuple[str, str]]) -> Photo:
    credit, link = credits.get(uri.rsplit("/", 1)[-1], ("", ""))
    shown = thumbnail(uri)
    return Photo(number, name, shown.data_uri if shown else "data:,", credit, link)


def _card(line: Line, place: Mapping[int, int]) -> Card:
    tokens, end = [], 0
    for start, stop, voken, score in line.tokens:
        if start > end:
            tokens.append(Token(line.text[end:start].replace("\t", "  ·  ")))
        tokens.append(Token(line.text[start:stop], place[voken], score))
        end = stop
    tokens.append(Token(line.text[end:].replace("\t", "  ·  ")))
    return Card(tokens, [Match(place[row], score) for row, score in line.matches[:3]])
