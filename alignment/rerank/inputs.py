"""What a re-ranking reads: vectors of a split and of its captions' entities, or ready lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignment.entities.entity_tables import Box, boxes_of_images, read_boxes, read_entities
from alignment.rerank.candidates import WAYS, Lists, Way, lists_of, named, read_predictions
from alignment.rerank.entity_slots import EntitySlots, read_bare_text, read_slots, with_bare_text
from alignment.rerank.pipeline import Vectors
from alignment.rerank.settings import RerankSettings
from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError
from xmatch.evaluation.evaluated import evaluated_embeddings
from xmatch.evaluation.members import EmbeddingsConfig, embeddings_member, place_sha256, places
from xmatch.search.factored import FactoredVectors

SIDES: dict[Way, str] = {"t2i": "text_predictions", "i2t": "image_predictions"}
"""Names of the files of both directions: what captions found, and what images found."""


@dataclass(frozen=True, kw_only=True)
class PredictionsConfig:
    """Ready lists instead of vectors; bidirectional re-ranking needs no more."""

    texts: str = ""
    """Predictions table of captions: the images that each found."""
    images: str = ""
    """Predictions table of images: the captions that each found."""

    def __post_init__(self) -> None:
        """Both directions are needed."""
        if bool(self.texts) != bool(self.images):
            raise InputError("give predictions.texts and predictions.images, both: each direction needs the other.")


@dataclass(frozen=True, kw_only=True)
class EntitiesConfig:
    """What is known of the captions' entities."""

    prompts: str = ""
    """Vectors of the captions' entities in prompts (embed --side prompts)."""
    masks: str = ""
    """Vectors of the captions with an entity masked (embed --side masked_texts)."""
    bare_text: str = ""
    """Vector of the empty text, a bank of one row (rerank.empty_slots=bare_text)."""
    table: str = ""
    """Entities table (jobs/extract_entities.py): their words, for the page."""
    boxes: str = ""
    """Boxes table, to draw on the page where entities are."""

    def __post_init__(self) -> None:
        """Prompts and masked captions belong together."""
        if bool(self.prompts) != bool(self.masks):
            raise InputError("give entities.prompts and entities.masks, both.")

    @property
    def vector_places(self) -> dict[str, str]:
        """The places of vectors that are given, by name."""
        named = {"prompts": self.prompts, "masks": self.masks, "bare_text": self.bare_text}
        return {name: place for name, place in named.items() if place}


class Read(NamedTuple):
    """What was read.

    Attributes:
        vectors: of the split; None where lists were given.
        lists: of both directions; None where vectors were given.
        hashes: SHA-256 of what they were read from.
    """

    vectors: Vectors | None
    lists: dict[Way, Lists] | None
    hashes: dict[str, str]


def one_bank(config: EmbeddingsConfig) -> tuple[str, str]:
    """The banks of images and of captions, "" where none are given.

    Raises:
        InputError: there are several.
    """
    images, texts = places(config.images), places(config.texts)
    if len(images) > 1:
        raise InputError("re-ranking takes the vectors of one model; give one of embeddings.images and of .texts.")
    return (images[0], texts[0]) if images else ("", "")


def require_one_source(embeddings: EmbeddingsConfig, evaluation: str, predictions: PredictionsConfig) -> None:
    """Check that either vectors, or an evaluation that has them, or lists are given.

    Raises:
        InputError: none of them, or several.
    """
    if sum(map(bool, (one_bank(embeddings)[0], evaluation, predictions.texts))) != 1:
        raise InputError(
            "give one of three: an evaluation; embeddings.images and embeddings.texts; predictions.texts and .images."
        )


def banks_of(embeddings: EmbeddingsConfig, evaluation: str, gallery: CaptionSet) -> EmbeddingsConfig:
    """The embeddings given, or those that an evaluation left.

    Raises:
        InputError: the evaluation has none of this split.
    """
    if not evaluation:
        return embeddings
    found = evaluated_embeddings(evaluation, gallery)
    return EmbeddingsConfig(images=[found.images], texts=[found.texts])


def read_inputs(
    embeddings: EmbeddingsConfig,
    predictions: PredictionsConfig,
    entities: EntitiesConfig,
    settings: RerankSettings,
    gallery: CaptionSet,
) -> Read:
    """Vectors in the order of the split, or ready lists as its rows.

    Raises:
        InputError: a file is broken, or does not fit the split.
    """
    if predictions.texts:
        return _read_lists(predictions, gallery)
    member = embeddings_member(*one_bank(embeddings), gallery)
    assert member.embeddings is not None, "a member of embeddings has them"
    slots = _slots(entities, settings, gallery)
    images, texts = member.embeddings
    if isinstance(images, FactoredVectors):
        raise InputError(
            f"{member.place}: the images have several vectors each, but re-ranking compares one vector an image. Use "
            "the embeddings of a model without views."
        )
    if slots is not None and {images.shape[1]} != {slots.prompts.width, slots.masks.width}:
        raise InputError(
            f"images are {images.shape[1]} wide, prompts {slots.prompts.width} and masked captions "
            f"{slots.masks.width}; embed all of them with one model."
        )
    hashes = member.hashes | {name: place_sha256(place) for name, place in entities.vector_places.items()}
    return Read(Vectors(images, texts, slots), None, hashes)


def _slots(entities: EntitiesConfig, settings: RerankSettings, gallery: CaptionSet) -> EntitySlots | None:
    if not entities.prompts:
        return None
    slots = read_slots(entities.prompts, entities.masks, gallery.caption_ids, settings.slots)
    if settings.empty_slots == "ignored":
        return slots
    if not entities.bare_text:
        raise InputError(
            "rerank.empty_slots=bare_text fills slots with the vector of the empty text; give it as "
            "--entities.bare_text, a bank of one row."
        )
    bare_text = read_bare_text(entities.bare_text)
    if bare_text.shape[1] != slots.prompts.width:
        raise InputError(
            f"{entities.bare_text!r} is {bare_text.shape[1]} wide and the prompts {slots.prompts.width}; embed both "
            "with one model."
        )
    return with_bare_text(slots, bare_text)


def _read_lists(config: PredictionsConfig, gallery: CaptionSet) -> Read:
    ids = {"t2i": (gallery.caption_ids, gallery.image_ids), "i2t": (gallery.image_ids, gallery.caption_ids)}
    places_of: dict[Way, str] = {"t2i": config.texts, "i2t": config.images}
    found = {way: lists_of(read_predictions(places_of[way]), *ids[way], places_of[way]) for way in WAYS}
    return Read(None, found, {SIDES[way]: files.sha256(places_of[way]) for way in WAYS})


def read_phrases(
    config: EntitiesConfig, gallery: CaptionSet, slots: EntitySlots | None, settings: RerankSettings
) -> list[list[str]]:
    """The words of every caption's entities; empty where no table is given.

    Raises:
        InputError: captions have fewer entities than vectors of entities; counted and named.
    """
    if not config.table:
        return []
    table = read_entities(config.table)
    texts = {
        one: [entity["text"] for entity in entities]
        for one, entities in zip(table.column("caption_id").to_pylist(), table.column("entities").to_pylist())
    }
    found = [texts.get(one, []) for one in gallery.caption_ids]
    if slots is not None and settings.empty_slots == "ignored":
        pairs = zip(gallery.caption_ids, found, slots.counts.tolist())
        differing = [one for one, phrases, count in pairs if len(phrases) < count]
        if differing:
            raise InputError(
                f"{config.table!r} and {config.prompts!r} do not belong together: {named(differing, 'captions')} have "
                "fewer entities in the first. Embed the prompts of this table."
            )
    return found


def read_box_map(config: EntitiesConfig) -> dict[str, list[Box]]:
    """Boxes by image; empty where no table is given."""
    return boxes_of_images(read_boxes(config.boxes)) if config.boxes else {}


def entity_counts(slots: EntitySlots | None, captions: Sequence[str]) -> dict[str, int] | None:
    """How many entities there are, and captions without; None where entities are not asked."""
    if slots is None:
        return None
    return {
        "captions": len(captions),
        "captions_without_entities": int((slots.counts == 0).sum()),
        "entities": int(slots.counts.sum()),
        "entities_beyond_slots": slots.beyond,
        "entities_of_other_captions": slots.elsewhere,
    }
