"""The data set of pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_models import tiny_vocabulary
from small_regions import some_regions
from torch.utils.data import DataLoader

from alignment.mvptr.dataset import MVPTRDataset
from alignment.mvptr.model import Inputs
from alignment.mvptr.regions.region_tsv import write_mvptr
from alignment.mvptr.regions.table import write_regions
from xmatch.data.region_files import write_line_offsets
from xmatch.errors import InputError

PAIRS = [
    {"text": "The cat sat", "image_id": "imagé1", "label": 1, "phrases": [["cat"], ["zebra"], ["cat", "big"]]},
    {"text": "a dog", "image_id": "imagé0", "label": "no", "phrases": []},
]
WORDS = len(tiny_vocabulary())
LENGTHS = {"max_seq_length": 8, "max_img_seq_length": 5, "max_tag_length": 6, "max_phrases": 3}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tiny_vocabulary().save_pretrained(str(tmp_path / "words"))
    write_mvptr(str(tmp_path), some_regions())
    (tmp_path / "pairs.json").write_text(json.dumps(PAIRS))
    cat = tiny_vocabulary().convert_tokens_to_ids("cat")
    (tmp_path / "id2phrase.json").write_text(json.dumps({cat: ["cat"], WORDS + 4: ["cat", "big"]}))
    return tmp_path


def opened(place: Path, features: str = "predictions.tsv", **more) -> MVPTRDataset:
    return MVPTRDataset(
        tokenizer_path=str(place / "words"),
        img_feat_file=str(place / features),
        input_data=str(place / "pairs.json"),
        id2phrase=str(place / "id2phrase.json"),
        **{**LENGTHS, **more},
    )


def test_a_pair_becomes_seven_tensors(place: Path) -> None:
    data = opened(place)
    index, [ids_a, mask_a, types_a, ids_b, mask_b, types_b, features] = data[0]
    tokenizer = tiny_vocabulary()
    cls, the, cat, sat, sep = tokenizer.convert_tokens_to_ids(["[CLS]", "the", "cat", "sat", "[SEP]"])
    assert index == 0 and ids_a.tolist() == [cls, the, cat, sat, cat, WORDS + 4, sep, 0, 0, 0, 0]
    assert mask_a.tolist() == [1] * 7 + [0] * 4 and types_a.tolist() == [0] * 11
    tags = tokenizer(" ".join(some_regions()[1].tags), add_special_tokens=False)["input_ids"]
    assert ids_b.tolist() == [cls, *tags[:4], sep] and types_b.tolist() == [1] * 6
    assert mask_b.tolist() == [1] * 6 + [1] * 4 + [0]
    assert features.shape == (5, 11) and not bool(features[4].any())
    assert torch.equal(features[:4, :5], torch.from_numpy(some_regions()[1].features))
    assert [data.get_label(row) for row in range(len(data))] == [1, "no"]


def test_torchs_own_collation_makes_batches(place: Path) -> None:
    index, batch = next(iter(DataLoader(opened(place), batch_size=2)))
    assert index.tolist() == [0, 1]
    assert [tuple(part.shape) for part in Inputs(*batch)] == [
        (2, 11), (2, 11), (2, 11), (2, 6), (2, 11), (2, 6), (2, 5, 11)]  # fmt: skip


def test_a_table_of_regions_gives_the_same_tensors(place: Path) -> None:
    from alignment.mvptr.regions.geometry import with_geometry

    write_regions(str(place / "r.arrow"), map(with_geometry, some_regions()))
    for mine, theirs in zip(opened(place, "r.arrow")[1][1], opened(place)[1][1]):
        assert torch.equal(mine, theirs)


def test_defaults_are_the_originals(place: Path) -> None:
    arguments = [str(place / name) for name in ("words", "predictions.tsv", "pairs.json", "id2phrase.json")]
    tensors = MVPTRDataset(*arguments)[0][1]
    assert tensors.input_ids_a.shape == (35,) and tensors.img_feats.shape[0] == 50 and len(tensors.input_ids_b) == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": "none"}, r"pairs.json', row 1: image 'none' has no regions"),
        ({"phrases": None}, r"pairs.json', row 1: expected a list of phrases"),
        ({"phrases": ["cat"]}, r"pairs.json', row 1: expected a list of phrases"),
        ({"text": None}, r"pairs.json', row 1: expected an object with text"),
    ],
)
def test_bad_pairs_name_file_and_row(place: Path, changes: dict, message: str) -> None:
    (place / "pairs.json").write_text(json.dumps([PAIRS[0], {**PAIRS[1], **changes}]))
    with pytest.raises(InputError, match=message):
        opened(place)


def test_widths_ids_and_labels_that_do_not_fit_name_file_and_row(place: Path) -> None:
    with pytest.raises(InputError, match=r"predictions.tsv', line 2: regions have 11 numbers.* reads 2054"):
        opened(place, region_width=2054)[0]
    with pytest.raises(InputError, match=rf"id2phrase.json', row 1: phrase 'cat big' has id {WORDS + 4}"):
        opened(place, vocab_size=WORDS + 4)
    (place / "pairs.json").write_text(json.dumps([{k: v for k, v in PAIRS[0].items() if k != "label"}]))
    with pytest.raises(InputError, match="row 0: no label"):
        opened(place).get_label(0)


def test_a_truncated_line_names_file_and_line(place: Path) -> None:
    path = place / "predictions.tsv"
    lines = path.read_text().splitlines()
    key, payload = lines[1].split("\t")
    content = json.loads(payload)
    content["feature"] = content["feature"][:-4]
    path.write_text("".join(f"{one}\n" for one in (lines[0], f"{key}\t{json.dumps(content)}", lines[2])))
    write_line_offsets(str(path))
    with pytest.raises(InputError, match=r"predictions.tsv', line 2: features have .* bytes, which are not 4 rows"):
        opened(place, region_width=11)[0]
