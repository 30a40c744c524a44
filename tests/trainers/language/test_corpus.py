"""The documents of a street whose POIs, clicks and cut-off are known by hand; the history part is its first day."""

from __future__ import annotations

import dataclasses
import doctest
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_repo import columns
from feature_repo.datasets.schema import TIME, Schema
from trainers.language import corpus as corpus_module
from trainers.language import families
from trainers.language.clicks import HoldOut
from trainers.language.corpus import Corpus, CorpusConfig, CorpusError, Document, Span, place_document, read_corpus
from trainers.language.families import FAMILIES

PLACES = [
    ("crumb", "bakery", "", "rye bread"),
    ("slurp", "noodles", "", "ramen"),
    ("late", "bar"),
    ("sip", "cafe", "", "tea"),
]
# Ann clicks three times in the history part (0 is 10:00 in Helsinki), Bob twice, Eve only afterwards.
SHOWN = [
    (3.0, "ann", "slurp"),
    (0.0, "ann", "crumb"),
    (12.0, "ann", "sip"),
    (23.995, "ann", "slurp"),  # what became of it is known after the cut-off
    (30.0, "ann", "crumb"),
    (1.0, "bob", "sip"),
    (2.0, "bob", "slurp"),
    (25.0, "eve", "crumb"),
    (26.0, "eve", "crumb"),
    (27.0, "eve", "crumb"),
]
NOTHING_HELD_OUT = CorpusConfig(hold_out=HoldOut(), held_out_users=0.0, fewest_clicks=2)


def said(document: Document) -> str:
    return "".join(span.text for span in document)


@pytest.fixture
def read(street):
    """`read(config)`: the corpus of the street. The place `late` appears a second after the cut-off."""
    workspace = street(PLACES, SHOWN)
    cut = Schema.load(workspace.schema).split.train
    pois = pq.read_table(workspace.source("pois"))
    name = columns.CREATED_TIMESTAMP
    known = dict(zip(pois[columns.POI_ID].to_pylist(), pois[name].to_pylist(), strict=True))
    times = pa.array((known | {"late": cut + timedelta(seconds=1)}).values(), TIME)
    pq.write_table(pois.set_column(pois.column_names.index(name), name, times), workspace.source("pois"))
    return lambda config=NOTHING_HELD_OUT: read_corpus(workspace, config)


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(families).failed == doctest.testmod(corpus_module).failed == 0


def test_the_documents_of_the_street(read):
    corpus: Corpus = read()
    assert corpus.available_at == datetime(2026, 3, 3, 8, 0, tzinfo=UTC)
    assert [facts["name"] for facts in corpus.places] == ["crumb", "slurp", "sip"]  # not the one that came later
    known = ("name", "location", "category", "description", "offers", "hours", "user", "clicked")
    assert corpus.tokens == tuple(f"<|{name}|>" for name in known)
    assert [said(document) for document in corpus.histories] == [
        "<|user|> This is ann.<|clicked|> morning: crumb, bakery, rye bread<|clicked|> lunch: slurp, noodles, ramen"
        "<|clicked|> night: sip, cafe, tea",
        "<|user|> This is bob.<|clicked|> lunch: sip, cafe, tea<|clicked|> lunch: slurp, noodles, ramen",
    ]
    assert corpus.held_out_places == corpus.held_out_histories == ()
    assert corpus.general and corpus.held_out_general


def test_a_history_holds_the_newest_clicks_of_those_who_clicked_enough(read):
    few = read(dataclasses.replace(NOTHING_HELD_OUT, history_clicks=1, fewest_clicks=1))
    assert [said(d).split("<|clicked|>")[1:] for d in few.histories] == [
        [" night: sip, cafe, tea"],
        [" lunch: slurp, noodles, ramen"],
    ]
    assert [said(d)[:20] for d in read(dataclasses.replace(NOTHING_HELD_OUT, fewest_clicks=3)).histories] == [
        "<|user|> This is ann"
    ]


@pytest.mark.parametrize("held", [HoldOut(pois=0.5, seed=1), HoldOut(categories=0.5)], ids=["pois", "categories"])
def test_held_out_pois_stand_in_no_training_document(read, held):
    corpus: Corpus = read(dataclasses.replace(NOTHING_HELD_OUT, hold_out=held, fewest_clicks=1))
    names = {facts["name"] for facts in corpus.held_out_places}
    assert names and names < {"crumb", "slurp", "sip"}
    places = [place_document(facts, family) for facts in corpus.places for family in FAMILIES]
    everything = [*places, *map(corpus.conditional, corpus.places), *corpus.histories, *corpus.held_out_histories]
    assert not [name for name in names for document in everything if name in said(document)]
    assert {facts["name"] for facts in corpus.places} == {"crumb", "slurp", "sip"} - names


def test_the_same_users_are_held_out_whoever_else_there_is(read):
    corpus: Corpus = read(dataclasses.replace(NOTHING_HELD_OUT, held_out_users=0.5))
    together = {said(d) for d in (*corpus.histories, *corpus.held_out_histories)}
    assert together == {said(d) for d in read().histories}
    assert not {said(d) for d in corpus.histories} & {said(d) for d in corpus.held_out_histories}
    fewer: Corpus = read(dataclasses.replace(NOTHING_HELD_OUT, held_out_users=0.5, fewest_clicks=3))
    assert {said(d) for d in fewer.held_out_histories} <= {said(d) for d in corpus.held_out_histories}


def test_what_is_given_is_read_and_what_is_predicted_is_written(read):
    crumb = read().places[0]
    assert crumb["location"] == "60.170, 24.940"
    expected = (
        Span("<|name|>", content=False, target=False),
        Span(" crumb", content=True, target=False),
        Span("<|location|>", content=False, target=False),
        Span(" 60.170, 24.940", content=True, target=False),
        Span("<|description|>", content=False, target=False),
        Span(" Place crumb is a bakery.", content=True, target=True),
        Span("<|offers|>", content=False, target=True),
        Span(" rye bread", content=True, target=True),
    )
    assert read().conditional(crumb) == expected
    only = read(dataclasses.replace(NOTHING_HELD_OUT, given=("category",), predicted=("offers",)))
    assert said(only.conditional(crumb)) == "<|category|> bakery<|offers|> rye bread"
    with pytest.raises(CorpusError, match=r"has none of \('offers',\)"):
        only.conditional({"name": "bare"})


def test_a_family_orders_and_words_every_attribute(read):
    facts = {"name": "Crumb", "category": "bakery", "offers": "rye bread", "price_level": "low"}
    assert said(place_document(facts, "guide")) == (
        "<|name|> This is Crumb.<|category|> What it is: bakery.<|offers|> Known for rye bread."
        "<|price_level|> Its price level is low."
    )
    assert said(place_document(facts, "notes")).startswith("<|offers|> On offer: rye bread.<|price_level|>")
    assert place_document(facts, "record")[:2] == (Span("<|name|>"), Span(" Crumb", content=True))
    texts = {family: said(place_document(facts, family)) for family in FAMILIES}
    assert len(set(texts.values())) == len(FAMILIES) >= 4
    assert all(value in text for text in texts.values() for value in facts.values())
    corpus: Corpus = read()
    assert set(corpus.families) == set(FAMILIES) - {"letter"}


def test_impossible_corpora_are_refused(read, street):
    with pytest.raises(CorpusError, match="no template family 'sonnet' to hold out"):
        CorpusConfig(held_out_family="sonnet")
    with pytest.raises(CorpusError, match="held_out_users is a share"):
        CorpusConfig(held_out_users=1.0)
    with pytest.raises(CorpusError, match="no POI appeared before"):
        read(dataclasses.replace(NOTHING_HELD_OUT, hold_out=HoldOut(pois=0.99)))
