"""Regions by a detector of transformers whose queries have states: DETR and its kin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForObjectDetection

from alignment.mvptr.regions.detector_config import DetectorConfig, read_names
from alignment.mvptr.regions.selection import Candidates
from xmatch.errors import InputError
from xmatch.models.staging import local_folder


class TransformersDetector:
    """Each query's box and likeliest class, with its last state as feature.

    Raises:
        InputError: the model is not there, is no detector, or its names do not fit.
    """

    def __init__(self, config: DetectorConfig, device: torch.device) -> None:
        folder, self.device = local_folder(config.model, "model"), device
        try:
            settings = AutoConfig.from_pretrained(folder, local_files_only=True)
            self.images = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model = AutoModelForObjectDetection.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{config.model!r} is no detector of transformers: {str(error).splitlines()[0]}"
            ) from error
        self.model, self.place = model.to(device).eval(), config.model
        own = [settings.id2label.get(at, "") for at in range(max(settings.id2label, default=-1) + 1)]
        self.names = read_names(config.names) if config.names else own
        self.width = int(settings.hidden_size)
        if len(self.names) != len(own):
            raise InputError(f"{config.names!r} has {len(self.names)} names, the model {len(own)} classes.")

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[Candidates]:
        """The candidates of each image.

        Raises:
            InputError: the model has no state for each of its boxes.
        """
        inputs = self.images(images=list(images), return_tensors="pt").to(self.device)
        outputs = self.model(**inputs)
        states, logits = outputs.last_hidden_state.float().cpu(), outputs.logits.float().cpu()
        if states.shape[:2] != logits.shape[:2] or states.shape[2] != self.width:
            raise InputError(
                f"{self.place!r} has states {tuple(states.shape)} for scores {tuple(logits.shape)}; expected one of "
                f"{self.width} numbers for each box, as DETR has."
            )
        is_softmax = logits.shape[-1] == len(self.names) + 1  # the class behind the others is "nothing"
        shares = logits.softmax(-1)[..., :-1] if is_softmax else logits.sigmoid()
        scores, labels = shares.max(-1)
        centre_x, centre_y, width, height = outputs.pred_boxes.float().cpu().unbind(-1)
        sides = (centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2)
        boxes = torch.stack(sides, -1).clamp(0, 1)
        return [
            Candidates(boxes[row] * torch.tensor([*image.size] * 2), scores[row], labels[row], states[row])
            for row, image in enumerate(images)
        ]
