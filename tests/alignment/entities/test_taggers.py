"""spaCy and TextBlob behind one protocol."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alignment.entities import taggers
from alignment.entities.spacy_tagger import SpacyTagger, installed_models, parsed_doc
from alignment.entities.spans import nested_spans
from alignment.entities.taggers import chosen_tagger, load_tagger
from xmatch.errors import InputError

spacy = pytest.importorskip("spacy")


def test_textblob_needs_no_download() -> None:
    code = (
        "import socket; socket.socket.connect = None; socket.getaddrinfo = None\n"
        "import nltk.data; nltk.data.path.clear()\n"
        "from alignment.entities.taggers import load_tagger\n"
        "print(len(load_tagger('textblob')('A dog on a sofa').phrases))"
    )
    environment = {**os.environ, "HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "2", done.stderr


def test_auto_takes_spacy_where_it_has_a_model(monkeypatch) -> None:
    assert chosen_tagger("en_x") == "en_x"
    monkeypatch.setattr(taggers, "installed_models", lambda: [])
    assert chosen_tagger("auto") == "textblob"
    monkeypatch.setattr(taggers, "installed_models", lambda: ["en_core_web_md"])
    assert chosen_tagger("auto") == "en_core_web_md"


def test_small_models_come_first(monkeypatch) -> None:
    monkeypatch.setattr(
        spacy.util, "get_installed_models", lambda: ["de_a", "en_other", "en_core_web_trf", "en_core_web_sm"]
    )
    assert installed_models() == ["en_core_web_sm", "en_core_web_trf", "en_other"]


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="spaCy has no model 'en_none_sm'; installed are"):
        load_tagger("en_none_sm")


def test_a_parsed_document_gives_words_and_phrases() -> None:
    words = ["Four", "men", " ", "on", "top", "of", "it", "wave"]
    doc = spacy.tokens.Doc(
        spacy.blank("en").vocab,
        words=words,
        spaces=[True, True, False, True, True, True, True, False],
        tags=["CD", "NNS", "_SP", "IN", "NN", "IN", "PRP", "VBP"],
        pos=["NUM", "NOUN", "SPACE", "ADP", "NOUN", "ADP", "PRON", "VERB"],
        heads=[1, 7, 1, 1, 3, 4, 5, 7],
        deps=["nummod", "nsubj", "dep", "prep", "pobj", "prep", "pobj", "ROOT"],
        lemmas=["four", "man", " ", "on", "top", "of", "it", "wave"],
    )
    parsed = parsed_doc(doc)
    assert [token.text for token in parsed.tokens] == [word for word in words if word != " "]
    assert all(doc.text[token.start : token.end] == token.text for token in parsed.tokens)
    assert [doc.text[parsed.tokens[a].start : parsed.tokens[b - 1].end] for a, b in parsed.phrases] == [
        "Four men",
        "top",
    ]
    assert parsed.tokens[1].lemma == "man"
    assert len(nested_spans(doc.text, parsed).entities) == 3


@pytest.mark.slow
def test_a_saved_pipeline_is_a_tagger(tmp_path: Path) -> None:
    pipeline = spacy.blank("en")
    for name in ("tagger", "parser"):
        pipeline.add_pipe(name, config={"min_action_freq": 1} if name == "parser" else {})
    text = "A dog sits on a sofa"
    doc = pipeline.make_doc(text)
    given = {"tags": ["DT", "NN", "VBZ", "IN", "DT", "NN"], "heads": [1, 2, 2, 2, 5, 3],
             "deps": ["det", "nsubj", "ROOT", "prep", "det", "pobj"]}  # fmt: skip
    example = spacy.training.Example.from_dict(doc, given)
    ruler = pipeline.add_pipe("attribute_ruler")
    optimizer = pipeline.initialize(lambda: [example])
    ruler.add([[{"TAG": "NN"}]], {"POS": "NOUN"})
    for _ in range(40):
        pipeline.update([example], sgd=optimizer)
    pipeline.to_disk(tmp_path / "whole")
    tagger = SpacyTagger(str(tmp_path / "whole"))
    assert "spacy" in tagger.identity
    assert [entity.text for entity in nested_spans(text, tagger(text)).entities] == ["A dog", "a sofa"]
    pipeline.remove_pipe("parser")
    pipeline.to_disk(tmp_path / "half")
    with pytest.raises(InputError, match="has no parser"):
        SpacyTagger(str(tmp_path / "half"))
