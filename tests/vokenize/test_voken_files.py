from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from stub_encoder import StubEncoder, golden_bank

from vokenize.tokens import tokenize
from vokenize.voken_files import check_vokens, read_voken_shard
from vokenize.vokenizer import VokenizeConfig, vokenize_rows
from xmatch.data import files
from xmatch.errors import InputError
from xmatch.search import build_searcher


def made(tokenizer) -> tuple[pa.Table, pa.Table]:
    tokens = tokenize(tokenizer, [0, 1, 2], ["the cat", "", "a dog ran"])
    searcher = build_searcher(golden_bank()[2])
    config = VokenizeConfig(level="both", top_k=2)
    return tokens, vokenize_rows(tokens, StubEncoder(), searcher, config)


def test_a_written_shard_is_read_and_fits_its_tokens(tmp_path: Path, tokenizer) -> None:
    tokens, vokens = made(tokenizer)
    files.write_parquet(str(tmp_path / "v.parquet"), vokens)
    back = read_voken_shard(str(tmp_path / "v.parquet"))
    assert back.equals(vokens)
    check_vokens(tokens, back, "v.parquet")


def test_what_does_not_fit_is_named(tmp_path: Path, tokenizer) -> None:
    tokens, vokens = made(tokenizer)
    with pytest.raises(InputError, match="other lines"):
        check_vokens(tokens.slice(1), vokens, "v.parquet")
    longer = tokenize(tokenizer, [0, 1, 2], ["the cat", "", "a dog ran on"])
    with pytest.raises(InputError, match="line 2: 6 vokens for 8 places"):
        check_vokens(longer, vokens, "v.parquet")
    place = vokens.schema.get_field_index("vokens")
    wild = vokens.set_column(
        place, vokens.schema.field(place), pa.array([[99] * 4, None, [0] * 6], pa.list_(pa.int32()))
    )
    with pytest.raises(InputError, match="leaves the key bank of 8"):
        check_vokens(tokens, wild, "v.parquet")
    files.write_parquet(str(tmp_path / "t.parquet"), tokens)
    with pytest.raises(InputError, match="no voken shard"):
        read_voken_shard(str(tmp_path / "t.parquet"))
