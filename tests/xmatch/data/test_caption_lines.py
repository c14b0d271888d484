from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmatch.data.caption_lines import CaptionForm, Cut, cut_captions, read_cut
from xmatch.errors import InputError

TEXTS = st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=6), max_size=5)


@settings(deadline=None)
@given(
    images=st.lists(st.tuples(st.sampled_from(["train", "val"]), TEXTS), max_size=9),
    split=st.sampled_from([None, "train"]),
    per_shard=st.integers(1, 7),
    is_lxmert=st.booleans(),
)
def test_cuts_partition_the_wanted_captions_in_order(tmp_path_factory, images, split, per_shard, is_lxmert) -> None:
    path = tmp_path_factory.mktemp("c") / "c.json"
    if is_lxmert:
        path.write_text(json.dumps([{"sentf": {"mscoco" if s == "train" else "vg": texts}} for s, texts in images]))
    else:
        rows = [{"split": s, "sentences": [{"raw": text} for text in texts]} for s, texts in images]
        path.write_text(json.dumps({"dataset": "coco", "images": rows}, ensure_ascii=False))
    is_wanted = {"train"} if is_lxmert else {split or "train", split or "val"}
    wanted = [" ".join(text.split("\n")) for s, texts in images if s in is_wanted for text in texts]
    form = CaptionForm(str(path), split, "mscoco")
    if not wanted:
        with pytest.raises(InputError, match="holds no captions"):
            list(cut_captions(form, per_shard))
        return
    cuts = list(cut_captions(form, per_shard))
    assert [text for cut in cuts for text in read_cut(form, cut)] == wanted
    assert [cut.captions for cut in cuts[:-1]] == [per_shard] * (len(cuts) - 1)
    assert all(len(read_cut(form, cut)) == cut.captions for cut in cuts)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"img_id": "x"}], "no LXMERT or Karpathy caption file: 'sentf'"),
        ([1], "no LXMERT or Karpathy"),
        ({"images": [{"sentences": []}]}, "'split'"),
        ({"images": [{"split": "train", "sentences": [{"raw": None}]}]}, "no text: None"),
        ({"annotations": []}, "no list 'images'"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "c.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"c.json.*{message}"):
        list(cut_captions(CaptionForm(str(tmp_path / "c.json"), None, "mscoco"), 3))


def test_a_file_that_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('[{"sentf": {"mscoco": ["a", "b"]}}]')
    form = CaptionForm(str(tmp_path / "c.json"), None, "mscoco")
    [cut] = cut_captions(form, 9)
    with pytest.raises(InputError, match="changed while it was read"):
        read_cut(form, Cut(cut.start, cut.stop - 1, cut.skip, cut.captions))
