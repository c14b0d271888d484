"""The original's `BiImageBertRep` by its argument names: both encoders and the cross encoder, in one call."""

from __future__ import annotations

import torch
from torch import nn

from alignment.mvptr.config import Lengths
from alignment.mvptr.heads import TaskModel
from alignment.mvptr.model import Inputs
from alignment.mvptr.original_checkpoints import from_pretrained
from xmatch.errors import InputError

Outputs = tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor]]


class BiImageBertRep(nn.Module):
    """A saved MVPTR, ours or the original's, called as the original's class is.

    Args:
        model: of any task; its head is not used.
    """

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.mvptr, self.config = model.mvptr, model.config

    @classmethod
    def from_pretrained(
        cls, folder: str, recipe: str = "retrieval_flickr30k", *, lengths: Lengths | None = None
    ) -> BiImageBertRep:
        """A model in eval mode.

        Args:
            folder: a saved MVPTR, or a checkpoint folder of the original.
            recipe: the published recipe whose lengths a checkpoint of the original has; it does not store them.
            lengths: instead of a recipe.

        Raises:
            InputError: it cannot be read, or does not fit.
        """
        return cls(from_pretrained(folder, recipe, lengths=lengths).model).eval()

    def forward(
        self,
        input_ids_a: torch.Tensor,
        token_type_ids_a: torch.Tensor | None = None,
        attention_mask_a: torch.Tensor | None = None,
        input_ids_b: torch.Tensor | None = None,
        token_type_ids_b: torch.Tensor | None = None,
        attention_mask_b: torch.Tensor | None = None,
        max_tag_length: int | None = None,
        img_feats: torch.Tensor | None = None,
    ) -> Outputs:
        """Encode pairs; S text, Q phrases, T tags, R regions, as the model's lengths.

        Args:
            input_ids_a: (B, S + Q) tokens and phrases.
            token_type_ids_a: (B, S + Q); none: 0.
            attention_mask_a: (B, S + Q); none: 1.
            input_ids_b: (B, T) tags.
            token_type_ids_b: (B, T), or (B, T + R), of which the last R are not looked at; none: 0.
            attention_mask_b: (B, T + R), or (B, T) of the tags alone: regions of nothing but zeros are then padding;
                none: all tags, and these regions.
            max_tag_length: T, or where else the model reads from; none: as it is stored.
            img_feats: (B, R, C).

        Returns:
            (B, S + Q + R, H) of the cross encoder, (B, H) pooled, and the pair of (B, S + Q, H) of the text encoder
            and (B, T + R, H) of the vision encoder.

        Raises:
            InputError: tags or regions are missing, or lengths are not those of the model.
        """
        if input_ids_b is None or img_feats is None:
            raise InputError("both input_ids_b (tags) and img_feats (regions) are needed.")
        if max_tag_length is not None and max_tag_length != self.config.first_cross_row:
            raise InputError(
                f"max_tag_length {max_tag_length}: this model has {self.config.lengths.tags} places for tags and its "
                f"cross encoder reads from {self.config.first_cross_row} on, which is stored with it."
            )
        tags = input_ids_b.shape[1]
        mask_b = torch.ones_like(input_ids_b) if attention_mask_b is None else attention_mask_b
        if mask_b.shape[1] == tags:
            mask_b = torch.cat([mask_b, (img_feats != 0).any(-1).to(mask_b)], dim=1)
        types_b = torch.zeros_like(input_ids_b) if token_type_ids_b is None else token_type_ids_b
        if types_b.shape[1] == self.config.lengths.vision_stream:
            types_b = types_b[:, :tags]
        sides, pairs = self.mvptr(
            Inputs(
                input_ids_a,
                torch.ones_like(input_ids_a) if attention_mask_a is None else attention_mask_a,
                torch.zeros_like(input_ids_a) if token_type_ids_a is None else token_type_ids_a,
                input_ids_b,
                mask_b,
                types_b,
                img_feats,
            )
        )
        return pairs.sequence, pairs.pooled, (sides.text.states, sides.image.states)
