"""How a dual encoder is fine-tuned on entities: matching, prompts, masks and painted images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from alignment.agree.choices import CaptionedImages, GroundedChoices, ObjectChoices
from alignment.agree.image_inputs import GroundedInputs, ObjectInputs, Views
from alignment.agree.losses import (
    TEXTUAL,
    VISUAL,
    AgreeLossConfig,
    Aligned,
    Grounded,
    Objects,
    Slots,
    agree_losses,
    one_workers_gradient,
    weighted_total,
)
from alignment.agree.slots import EntityConfig, choose_entities
from alignment.agree.text_inputs import SlotInputs, Texts
from alignment.entities.entity_tables import BOX_SCHEMA, read_boxes, read_entities
from xmatch.errors import InputError
from xmatch.models.dual_encoder import DualEncoder
from xmatch.training.dual_encoder_recipe import DualEncoderRecipe, RecipeConfig, RecipeData
from xmatch.training.gather import world_size
from xmatch.training.initial_weights import prepare_gradients
from xmatch.training.objectives import LossConfig
from xmatch.training.recipe import ParameterGroup, PartedLoss, Rows, SampleKey
from xmatch.training.sample_inputs import ImageInputs, PixelInputs


@dataclass(frozen=True, kw_only=True)
class AgreeData:
    """Where entities and boxes lie: files or folders that every worker can read."""

    entities: str = ""
    """Table of the entities of the captions."""
    boxes: str = ""
    """Table of boxes: of entities in the captioned images, of objects in these and in others."""
    object_photos: str = ""
    """Folders of the other images, joined by commas."""


@dataclass(frozen=True, kw_only=True)
class AgreeConfig:
    """What is trained, and on what."""

    matching: RecipeConfig
    """Model, augmentation and groups; its loss is not looked at."""
    losses: AgreeLossConfig = field(default_factory=AgreeLossConfig)
    entity: EntityConfig = field(default_factory=EntityConfig)
    as_saved: bool = False
    """Start from the saved model of `RecipeData.init_from` as it is, configuration and statistics included."""


def require_data(losses: AgreeLossConfig, entity: EntityConfig, data: AgreeData, *, has_pixels: bool) -> None:
    """Check that what the losses in use are made of was given.

    Args:
        losses: which are in use.
        entity: what stands in for boxes.
        data: what was given.
        has_pixels: whether images are decoded; false for ready-made features.

    Raises:
        InputError: something is missing; names loss and setting.
    """
    painted = [name for name in losses.active if name in (*VISUAL, "grounded_mask")]
    if painted and not has_pixels:
        raise InputError(
            f"the loss {painted[0]!r} paints images, so it needs their pixels, but image features are ready made. "
            "Leave features out, or switch it off: losses.use '[contrastive, prompt, text_mask]'."
        )
    needs = {
        "entities": losses.needs(*TEXTUAL, "grounded_mask"),
        "boxes": losses.needs(*VISUAL) or (losses.needs("grounded_mask") and entity.fallback == "none"),
        "object_photos": losses.needs(*VISUAL),
    }
    for name, is_needed in needs.items():
        if is_needed and not getattr(data, name):
            users = {"entities": (*TEXTUAL, "grounded_mask"), "boxes": (*VISUAL, "grounded_mask")}.get(name, VISUAL)
            user = next(loss for loss in losses.active if loss in users)
            raise InputError(
                f"the loss {user!r} is in use, but {name} is empty; give it, or switch the loss off in losses.use."
            )


class AgreeRecipe:
    """Fine-tunes any `DualEncoder` with the losses of AGREE; a recipe of `xmatch.training.recipe.Recipe`.

    Args:
        config: model, losses, entities.
        tokenizer: the text tower's.
        samples: captions and images; init_from names the model to start from.
        data: entities and boxes.
    """

    def __init__(
        self, config: AgreeConfig, tokenizer: PreTrainedTokenizerBase, samples: RecipeData, data: AgreeData
    ) -> None:
        self.config, self.losses, self.samples, self.data = config, config.losses, samples, data
        loss = LossConfig(name="info_nce", negatives=config.losses.negatives)
        self.matching = DualEncoderRecipe(replace(config.matching, loss=loss), tokenizer, samples)
        self.texts = Texts(tokenizer, config.matching.model.text)
        self.slots: SlotInputs | None = None
        self.objects: ObjectInputs | None = None
        self.grounded: GroundedInputs | None = None

    @property
    def num_samples(self) -> int:
        """Training captions."""
        return self.matching.num_samples

    @property
    def gathers(self) -> bool:
        """Whether negatives come from all workers."""
        return self.losses.negatives == "global"

    def build_model(self) -> nn.Module:
        """The dual encoder to start from, and the inputs that its towers take.

        Raises:
            InputError: the losses in use need what was not given, or what was given does not belong to the captions.
        """
        model = self._saved_model() if self.config.as_saved else self.matching.build_model()
        assert isinstance(model, DualEncoder)
        self._open(model, self.matching.images)
        return model.train()

    def _saved_model(self) -> DualEncoder:
        model, config = DualEncoder.from_pretrained(self.samples.init_from), self.config.matching
        self.matching.open_inputs(model)
        prepare_gradients(model, self.matching.objective, checkpointing=config.gradient_checkpointing)
        return model

    def _open(self, model: DualEncoder, images: ImageInputs) -> None:
        if len(model.image_shape) > 1:
            raise InputError(
                "the losses of AGREE compare one vector an image, but this model makes several views of it: choose "
                "another model.image_pooling than views."
            )
        pixels = images if isinstance(images, PixelInputs) else None
        require_data(self.losses, self.config.entity, self.data, has_pixels=pixels is not None)
        train, entity, losses = self.matching.train, self.config.entity, self.losses
        captions = train.captions.column("caption").to_pylist()
        spans = chosen_spans(train.captions.column("caption_id").to_pylist(), captions, self.data, entity)
        if losses.needs(*TEXTUAL):
            self.slots = SlotInputs(captions, spans, self.texts, entity, losses)
        if pixels is None or not losses.needs(*VISUAL, "grounded_mask"):
            return
        names, uris = (train.images.column(name).to_pylist() for name in ("image_id", "uri"))
        own = CaptionedImages(captions, train.image_rows, names, uris, spans)
        boxes = read_boxes(self.data.boxes) if self.data.boxes else BOX_SCHEMA.empty_table()
        views, has_square = Views(pixels, model.image_tower.config), entity.fallback == "square"
        if losses.needs("grounded_mask"):
            self.grounded = GroundedInputs(GroundedChoices(own, boxes), views, has_square=has_square)
        if losses.needs(*VISUAL):
            choices, is_painted = ObjectChoices(own, boxes, self.data.object_photos), losses.needs("visual_mask")
            self.objects = ObjectInputs(choices, views, self.texts, has_square=has_square, is_painted=is_painted)

    def parameter_groups(self, model: nn.Module) -> list[ParameterGroup]:
        """Trainable parameters by decay, rate and time of thawing."""
        return self.matching.parameter_groups(model)

    def batch(self, indices: npt.NDArray[np.int64], key: SampleKey) -> Rows:
        """Captions and images at `indices`, of shape (B,), and what the losses in use take.

        A function of (key, indices), row by row.
        """
        rows = {**self.matching.batch(indices, key), "sample": torch.from_numpy(indices.copy())}
        places = [int(index) for index in indices]
        if self.slots is not None:
            rows |= self.slots.batch(places)
        for part in (self.objects, self.grounded):
            if part is not None:
                rows |= part.batch(places, key)
        return rows

    def embed(self, model: nn.Module, batch: Rows) -> dict[str, torch.Tensor]:
        """Embeddings of captions, images and painted images (B, D), of prompts and masked captions (B, P, D)."""
        assert isinstance(model, DualEncoder)
        rows = self.matching.embed(model, batch)
        for part in (self.slots, self.objects, self.grounded):
            if part is not None:
                rows |= part.embed(model, batch)
        return rows

    def loss(self, model: nn.Module, embeddings: Rows, epoch: int) -> PartedLoss:
        """The weighted sum of the losses in use, over all rows given, and each of them."""
        assert isinstance(model, DualEncoder)
        if self.losses.legacy_gather:
            workers = world_size()
            embeddings = {
                name: one_workers_gradient(rows, workers) if rows.is_floating_point() else rows
                for name, rows in embeddings.items()
            }
        values = agree_losses(aligned_rows(embeddings), model.logit_scale.exp(), self.losses)
        return PartedLoss(weighted_total(values, self.losses), values)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Recall in both directions and rsum on the validation split."""
        return self.matching.evaluate(model)

    def save_model(self, model: nn.Module, folder: str) -> None:
        """A folder that `DualEncoder.from_pretrained` loads."""
        self.matching.save_model(model, folder)

    def load_model(self, model: nn.Module, folder: str) -> None:
        """Weights of a folder written by `save_model`."""
        self.matching.load_model(model, folder)


def chosen_spans(
    caption_ids: Sequence[str], captions: Sequence[str], data: AgreeData, entity: EntityConfig
) -> npt.NDArray[np.int32]:
    """(M, P, 2) characters of the entities that take part; of no caption where no table of entities was given."""
    if not data.entities:
        return np.full((len(captions), entity.slots, 2), -1, np.int32)
    return choose_entities(caption_ids, captions, read_entities(data.entities), entity, data.entities).spans


def aligned_rows(rows: Mapping[str, torch.Tensor]) -> Aligned:
    """Embeddings by name, (B, D) or (B, P, D), as the losses take them."""
    slots = objects = grounded = None
    if "slot_valid" in rows:
        slots = Slots(rows.get("prompts"), rows.get("masked"), rows["slot_valid"], rows["slot_keys"])
    if "object_valid" in rows:
        objects = Objects(
            rows["object_image"],
            rows["object_prompt"],
            rows.get("object_painted"),
            rows["object_valid"],
            rows["object_keys"],
            rows["object_rows"],
        )
    if "grounded_valid" in rows:
        grounded = Grounded(rows["grounded"], rows["grounded_valid"])
    return Aligned(rows["image"], rows["text"], rows["image_row"], slots, objects, grounded)
