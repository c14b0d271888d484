"""Where an evaluation keeps the embeddings of a model, and how another job finds them again."""

from __future__ import annotations

from typing import NamedTuple

from xmatch.data import files
from xmatch.data.captions import CaptionSet
from xmatch.errors import InputError
from xmatch.evaluation.gallery import gallery_sha256
from xmatch.evaluation.results import FIGURES_FILE


class EmbeddingPlaces(NamedTuple):
    """Banks of a split's images and captions, by the same model."""

    images: str
    texts: str


def embedding_places(output: str, model_sha256: str, gallery: CaptionSet) -> EmbeddingPlaces:
    """Where an evaluation in `output` keeps what a model made of a split.

    Args:
        output: folder of the evaluation.
        model_sha256: of the model, in hexadecimal.
        gallery: the split.
    """
    folder = files.join(output, "embeddings", model_sha256[:12])
    return EmbeddingPlaces(
        files.join(folder, "images"), files.join(folder, f"texts-{gallery_sha256(gallery)[:12]}.arrow")
    )


def evaluated_embeddings(output: str, gallery: CaptionSet) -> EmbeddingPlaces:
    """The embeddings that an evaluation of one model left.

    Args:
        output: folder of the evaluation.
        gallery: the split; it must be the one that was measured.

    Raises:
        InputError: nothing was measured there, several models were, or on another split; or the banks are gone.
    """
    path = files.join(output, FIGURES_FILE)
    if not files.exists(path):
        raise InputError(f"{path!r} does not exist; expected the output of jobs/eval_retrieval.py --model.")
    record = files.read_json(path)
    models = [one for one in record["members"] if one["kind"] == "model"]
    if len(models) != 1 or len(record["members"]) != 1:
        raise InputError(
            f"{path!r} measured {len(record['members'])} members, {len(models)} of them models; expected one model. "
            "Evaluate one alone, or give its embeddings."
        )
    if record["data_sha256"]["gallery"] != gallery_sha256(gallery):
        raise InputError(
            f"{path!r} measured another split than the one given ({len(gallery.image_ids)} images, "
            f"{len(gallery.captions)} captions). Give the same data.captions and data.split."
        )
    found = embedding_places(output, models[0]["sha256"]["model"], gallery)
    for place in found:
        if not files.exists(place):
            raise InputError(f"{place!r} does not exist; run the evaluation again, it embeds what is missing.")
    return found
