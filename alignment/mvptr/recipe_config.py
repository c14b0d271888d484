"""What of an MVPTR is trained, on which task, and from which start."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from alignment.mvptr.config import Lengths
from alignment.mvptr.heads import HeadConfig, Task
from alignment.mvptr.losses_config import MvptrLossConfig
from alignment.mvptr.masking import MaskingConfig
from alignment.mvptr.pair_inputs import TagConfig
from alignment.mvptr.tasks.refexp import WeakConfig
from alignment.mvptr.tasks.vqa import LossName
from alignment.mvptr.two_step import PoolConfig
from xmatch.errors import InputError

Supervision = Literal["boxes", "images"]
TaskName = Literal["pretrain", "retrieval", "vqa", "snli_ve", "refexp"]
HEADS: dict[TaskName, Task] = {
    "pretrain": "pretraining",
    "retrieval": "retrieval",
    "vqa": "vqa",
    "snli_ve": "classification",
    "refexp": "refexp",
}
"""The head that each task is learnt with."""
MATCHING: tuple[TaskName, ...] = ("pretrain", "retrieval")
"""Tasks on captions and their images, with losses of `MvptrLossConfig`."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """One split of a task's data."""

    pairs: str = ""
    """pretrain, retrieval: captions with their images and phrases: outputs of jobs/extract_phrases.py, joined by
    commas. pretrain also takes the original's corpus, `CORPUS.tsv`, with `phrases` beside it."""
    data: str = ""
    """vqa: `*_qla_mrcnn.json`, several joined by commas. snli_ve: `snli_ve_*.jsonl`. refexp: `ve_splits.json`."""
    phrases: str = ""
    """vqa: `*_sg_tuples.json`, one for each of `data`. snli_ve: `*_sgs.json`. pretrain: the corpus' JSON of phrases.
    Empty: no phrases."""
    answers: str = ""
    """pretrain: answers of the corpus' questions, "NAME=FOLDER" joined by commas: of each data set the folder of
    `QA_fileB.tsv` and `QA_qaid2idx.json`. Empty: questions are texts without an answer."""
    split: str = ""
    """refexp: train, val, testA or testB."""
    exclude: str = ""
    """pretrain, retrieval: Karpathy JSON of images whose captions are left out, in whatever spelling of their ids."""
    exclude_split: str = ""
    """Splits of that file, joined by commas; empty: all."""

    def __post_init__(self) -> None:
        """A split without a file means nothing."""
        if self.exclude_split and not self.exclude:
            raise InputError("exclude_split names splits of the file exclude; give that, too.")


@dataclass(frozen=True, kw_only=True)
class SizesConfig:
    """Sizes of a model that is made anew; the base model's."""

    hidden_size: int = 768
    num_layers: int = 12
    """Of the whole; text, vision and cross encoder have half as many each."""
    num_heads: int = 12
    intermediate_size: int = 3072
    attention_dropout: float = 0.1
    max_positions: int = 512
    region_norm: bool = True
    """Normalise the embedded regions."""
    initializer_range: float = 0.02


@dataclass(frozen=True, kw_only=True)
class MvptrTrainConfig:
    """One training of an MVPTR; what is of another task is not looked at."""

    task: TaskName = "retrieval"
    train: SplitConfig = field(default_factory=SplitConfig)
    """What is learnt from."""
    valid: SplitConfig = field(default_factory=SplitConfig)
    """What chooses the best epoch; never learnt from."""
    regions: str = ""
    """Regions of all images: tables of jobs/extract_regions.py or MVPTR's `predictions.tsv`, joined by commas."""
    lengths: Lengths = field(default_factory=Lengths)
    """How many places each part of an input has; stored with the model."""
    cross_from: int | None = None
    """First output of the vision encoder that the cross encoder reads; null: lengths.tags, the regions alone."""
    dropout: float = 0.1
    """Of hidden states, regions and what heads read."""
    model: SizesConfig = field(default_factory=SizesConfig)
    """Sizes of a model made anew or from a BERT, where init_from is empty. Regions and vocabularies say the rest."""
    bert: str = ""
    """A BERT of transformers to begin with, where init_from is empty: a folder or hub name; empty: random weights."""
    tokenizer: str = ""
    """Tokenizer of a model made anew, folder or hub name; empty: the BERT's, or one learnt from the training texts."""
    wordpieces: int = 8192
    """Words at most of a tokenizer that is learnt."""
    id2phrase: str = ""
    """Vocabulary of phrases of a model made anew; empty: one is made of the training pairs' phrases."""
    min_sentences: int = 50
    """Sentences that a phrase of that vocabulary must be in; 0: no phrases at all."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """What stands on the encoders; its `task` and outputs follow from `task`, its `questions` from `losses`."""
    tags: TagConfig = field(default_factory=TagConfig)
    """What becomes of the object tags."""
    losses: MvptrLossConfig = field(default_factory=MvptrLossConfig)
    """pretrain, retrieval: what is minimised."""
    schedule: Literal["joint", "two_stage"] = "joint"
    """pretrain: `joint`: all losses from the start, as released. `two_stage`: text and vision encoder alone first (mcr,
    vsc), for first_stage_epochs."""
    first_stage_epochs: int = 1
    """Epochs of the first stage."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """pretrain: what is masked."""
    valid_pools: PoolConfig | None = None
    """pretrain, retrieval: candidates of each validation query that the cross encoder orders (figures fine_…); null:
    the coarse figures alone."""
    answers: str = ""
    """vqa: the answers by label, JSON made of the pickled lists by `convert --what legacy`."""
    answer_kinds: str = ""
    """vqa: VQA v2's annotations, which say the kind of each validation question; empty: by the answer's form."""
    answer_loss: LossName = "bce"
    """vqa: binary cross-entropy summed over answers, or Kullback-Leibler divergence."""
    mask_training: float = 0.0
    """snli_ve: share of the training texts' tokens and phrases that become [MASK]."""
    supervision: Supervision = "boxes"
    """refexp: what is learnt from: the boxes that are meant, or which image an expression belongs to; then boxes of the
    training split are not read. Validation is by boxes."""
    weak: WeakConfig = field(default_factory=WeakConfig)
    """refexp by `images`: what is minimised."""
    detections: str = ""
    """refexp: given boxes of the validation images, one of which is chosen; empty: of the regions."""

    def __post_init__(self) -> None:
        """Refuse what does not exist."""
        if self.task not in get_args(TaskName) or self.schedule not in ("joint", "two_stage"):
            raise InputError(f"mvptr.task is one of {', '.join(get_args(TaskName))}; got {self.task!r}.")
        if self.supervision not in get_args(Supervision):
            raise InputError(f"mvptr.supervision is boxes or images; got {self.supervision!r}.")
        if not 0 <= self.dropout < 1 or not 0 <= self.mask_training <= 1:
            raise InputError("mvptr.dropout is a share from 0 to below 1, mvptr.mask_training from 0 to 1.")
        if min(self.first_stage_epochs, self.min_sentences) < 0 or self.wordpieces < 100:
            raise InputError("mvptr: first_stage_epochs and min_sentences are 0 or more, wordpieces at least 100.")

    @property
    def is_weak(self) -> bool:
        """Whether expressions are learnt without boxes."""
        return self.task == "refexp" and self.supervision == "images"

    def require_data(self) -> None:
        """Check that what the task is made of was given.

        Raises:
            InputError: something is missing; names the setting.
        """
        name = "pairs" if self.task in MATCHING else "data"
        for side, split in (("train", self.train), ("valid", self.valid)):
            if not getattr(split, name):
                raise InputError(f"mvptr.task={self.task} needs mvptr.{side}.{name}.")
        if not self.regions:
            raise InputError("give mvptr.regions, the regions of the images (jobs/extract_regions.py).")
        if self.task == "vqa" and not self.answers:
            raise InputError("mvptr.task=vqa needs mvptr.answers, the list of answers (convert --what legacy).")
        if self.task == "refexp" and not (self.train.split and self.valid.split):
            raise InputError("mvptr.task=refexp needs mvptr.train.split and mvptr.valid.split, such as train and val.")
