"""MVPTR: concepts on both sides, a dual encoder with a cross encoder on top, its tasks and a pipeline."""

from alignment.mvptr.original_checkpoints import from_pretrained
from alignment.mvptr.pipeline import Pipeline
from alignment.mvptr.seed_api import BiImageBertRep

__all__ = ["BiImageBertRep", "Pipeline", "from_pretrained"]
