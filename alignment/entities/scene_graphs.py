"""Scene-graph tuples of a caption by rule, from its tags and noun phrases: objects, attributes and relations.

The tuples are of the kinds that SPICE compares (Anderson et al., 2016): (object), (object, attribute) and (subject,
relation, object), in basic forms. Rules see neighbours, not a parse tree: what hangs on a distant word is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from alignment.entities.caption_tags import SUBORDINATORS
from alignment.entities.spans import LINKS, is_close
from alignment.entities.tagged import ADJECTIVES, JOINERS, NOUNS, Parsed, Token

SceneTuple = tuple[str, ...]
PLACES = ("top", "front", "back", "side", "middle", "next")
"""Words that are part of a preposition between two others: "on top of", "in front of", "next to"."""
POSSESSIVES = ("'s", "’s", "'", "’")
FINITE = ("VB", "VBD", "VBP", "VBZ")
CLAUSE_TAGS = (".", "WDT", "WP")
VERBS = (*FINITE, "VBG", "VBN")
AUXILIARIES = ("be", "have", "do")


class _Object(NamedTuple):
    """An object: its phrase's tokens, its noun, and whether "and" joins it to the one before."""

    first: int
    last: int
    name: str
    is_joined: bool


class _Between(NamedTuple):
    """What lies between two objects.

    Attributes:
        verb: basic form of the main verb; "" where there is none.
        is_passive: whether it is a past participle.
        is_participle: whether it is a participle, and no other verb with it.
        is_finite: whether one of the verbs is.
        prepositions: after the verb, as one text.
        adjectives: after a form of "be".
        is_joined: whether a conjunction or comma begins it.
        is_clause: whether another clause begins in it.
        has_object: whether the verb reaches what follows: prepositions and adverbs alone come after it.
    """

    verb: str
    is_passive: bool
    is_participle: bool
    is_finite: bool
    prepositions: str
    adjectives: tuple[str, ...]
    is_joined: bool
    is_clause: bool
    has_object: bool


def scene_tuples(parsed: Parsed, *, with_joined_participles: bool = True) -> list[SceneTuple]:
    """The tuples of a caption, without repeats, in order.

    Args:
        parsed: its words and basic noun phrases.
        with_joined_participles: whether participles that a conjunction joins have their direct objects: "a child
            holding an umbrella and petting a yak" then says (child, hold, umbrella) and (child, pet, yak). SPICE's
            parser finds neither there.

    Returns:
        Tuples of one to three texts in lower case.
    """
    objects = _objects(parsed)
    found: set[SceneTuple] = {(one.name,) for one in objects}
    for one in objects:
        found.update((one.name, attribute) for attribute in _attributes(parsed.tokens, one))
    found.update(_relations(parsed.tokens, objects, with_joined_participles))
    return sorted(found)


def _objects(parsed: Parsed) -> list[_Object]:
    """Objects in order; phrases that are part of a preposition are none."""
    objects: list[_Object] = []
    tokens = parsed.tokens
    for first, last in parsed.phrases:
        head = max(at for at in range(first, last) if tokens[at].tag in NOUNS)
        is_place = last - first == 1 and tokens[head].lemma in PLACES and first > 0 and tokens[first - 1].tag == "IN"
        if is_place and last < len(tokens) and tokens[last].text.lower() == "of":
            continue
        joined = tokens[objects[-1].last : first] if objects else ()
        is_joined = bool(joined) and all(token.text.lower() in JOINERS for token in joined)
        objects.append(_Object(first, last, tokens[head].lemma, is_joined))
    return objects


def _attributes(tokens: Sequence[Token], one: _Object) -> Iterator[str]:
    """Adjectives, numbers and nouns before the noun of a phrase."""
    for token in tokens[one.first : one.last]:
        if token.tag in (*ADJECTIVES, "CD", "VBG", "VBN") or (token.tag in NOUNS and token.lemma != one.name):
            yield token.text.lower() if token.tag in ("VBG", "VBN") else token.lemma


def _relations(
    tokens: Sequence[Token], objects: Sequence[_Object], with_joined_participles: bool
) -> Iterator[SceneTuple]:
    """Relations between neighbours, each side with the objects that "and" joins to it, and what a subject does."""
    groups = _groups(tokens, objects)
    gaps = [_between(tokens[a[-1].last : b[0].first]) for a, b in zip(groups, groups[1:])]
    left_out = set() if with_joined_participles else _joined_participles(gaps)
    clause = head = subject = 0  # groups: first of the clause, first of a chain of prepositions, who does the verb
    has_finite = False
    for at, group in enumerate(groups):
        is_last = at + 1 == len(groups)
        between = _between(tokens[group[-1].last :]) if is_last else gaps[at]
        if between.verb and not between.is_joined:
            subject = clause if between.is_finite and not has_finite else head
        has_finite = has_finite or between.is_finite
        yield from ((one.name, word) for one in groups[subject] for word in _said_of(between, is_last))
        if is_last:
            return
        source, relation = _relation(between, group, groups[head], groups[subject])
        if at not in left_out:
            yield from ((one.name, relation, other.name) for one in source for other in groups[at + 1])
        if not relation or between.verb:
            head = at + 1
        if between.is_clause or (between.is_joined and not between.verb):
            clause = subject = head
            has_finite = False


def _joined_participles(gaps: Sequence[_Between]) -> set[int]:
    """Numbers of the gaps whose verbs are participles with a direct object each, joined by conjunction or comma.

    Those that a finite verb begins are none: "is holding an umbrella and petting a yak".
    """
    found: set[int] = set()
    before: int | None = None
    after_finite = False
    for at, gap in enumerate(gaps):
        is_free = gap.is_participle and not (gap.is_joined and after_finite)
        if is_free and gap.has_object and not gap.prepositions and not gap.is_clause:
            if gap.is_joined and before is not None:
                found |= {before, at}
            before = at
        elif gap.verb or gap.is_clause:
            before = None
        after_finite = not gap.is_clause and not is_free and (after_finite or gap.is_finite)
    return found


def _said_of(between: _Between, is_last: bool) -> Iterator[str]:
    """What is said of a subject alone: adjectives, and a verb without an object."""
    yield from between.adjectives
    if between.verb and not between.is_passive and (is_last or between.is_clause or not between.has_object):
        yield between.verb


def _relation(
    between: _Between, nearest: list[_Object], head: list[_Object], subject: list[_Object]
) -> tuple[list[_Object], str]:
    """Who stands in a relation to what follows, and in which; "" and nobody where there is none."""
    if between.is_clause or (between.verb and not between.has_object):
        return [], ""
    if between.verb:
        return subject, f"{between.verb} {between.prepositions}".strip()
    if between.prepositions in POSSESSIVES:
        return nearest, "have"
    if not between.prepositions:
        return [], ""
    return (nearest if is_close(between.prepositions) else head), between.prepositions


def _groups(tokens: Sequence[Token], objects: Sequence[_Object]) -> list[list[_Object]]:
    """Objects, those that "and" joins together; one with a verb of its own begins anew after another verb's objects."""
    groups: list[list[_Object]] = []
    for one in objects:
        has_verb = any(token.tag in FINITE for token in tokens[one.last : one.last + 1])
        is_object = bool(groups) and any(token.tag in VERBS for token in tokens[: groups[-1][0].first])
        if one.is_joined and not (has_verb and is_object):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _between(tokens: Sequence[Token]) -> _Between:
    """What words between two phrases say, up to where another clause begins; an auxiliary is no main verb."""
    starts = [at for at, token in enumerate(tokens) if token.lemma in SUBORDINATORS or token.tag in CLAUSE_TAGS]
    clause = tokens[: starts[0]] if starts else tokens
    verbs, after = _verbs(clause)
    main = next((verb for verb in reversed(verbs) if verb.lemma not in AUXILIARIES), None)
    is_state = main is None and any(verb.lemma == "be" for verb in verbs)
    links = [token for token in after if token.tag in LINKS or token.lemma in PLACES]
    return _Between(
        verb=main.lemma if main else "",
        is_passive=main is not None and main.tag == "VBN",
        is_participle=main is not None and len(verbs) == 1 and main.tag in ("VBG", "VBN"),
        is_finite=any(verb.tag in FINITE for verb in verbs),
        prepositions=" ".join(token.text.lower() for token in links),
        adjectives=tuple(token.lemma for token in clause if token.tag in ADJECTIVES) if is_state else (),
        is_joined=bool(tokens) and tokens[0].text.lower() in JOINERS,
        is_clause=bool(starts),
        has_object=all(token in links or token.tag in ("RB", "DT") for token in after),
    )


def _verbs(tokens: Sequence[Token]) -> tuple[list[Token], Sequence[Token]]:
    """The verbs among words, and the words behind the last of them; all words where there is none."""
    places = [at for at, token in enumerate(tokens) if token.tag in VERBS]
    return [tokens[at] for at in places], tokens[places[-1] + 1 :] if places else tokens
