"""Zero-shot detectors with tiny random weights, saved as transformers saves them."""

from __future__ import annotations

from pathlib import Path

import torch
from small_models import tiny_vocabulary
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    SwinConfig,
)


def save_grounding_dino(folder: Path) -> str:
    """A Grounding DINO of a few thousand weights; its folder."""
    torch.manual_seed(0)
    tokenizer = tiny_vocabulary()
    swin = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    text = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config = GroundingDinoConfig(
        backbone_config=swin.to_dict(), text_config=text.to_dict(), d_model=32, num_queries=8, encoder_layers=1,
        decoder_layers=2, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
        decoder_attention_heads=2, max_text_len=48, num_feature_levels=4,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).eval().save_pretrained(str(folder))
    GroundingDinoImageProcessor(size={"shortest_edge": 96, "longest_edge": 128}).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def save_owl(folder: Path) -> str:
    """An OWLv2 of a few thousand weights; its folder."""
    torch.manual_seed(0)
    tokenizer = tiny_vocabulary()
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 9, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    Owlv2ForObjectDetection(config).eval().save_pretrained(str(folder))
    Owlv2ImageProcessor(size={"height": 32, "width": 32}).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return str(folder)
