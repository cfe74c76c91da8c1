"""The labelled set and the preference pairs that benchmarks make are what they say they are."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def benchmarks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")


def test_passages_of_each_source_are_split_by_position(assets: Path) -> None:
    from sources import SOURCES, WORDS, labelled_set, words_of

    train, held_out = labelled_set(40)
    for source in SOURCES:
        text = " ".join(words_of(source))
        places = [[text.index(line["text"]) for line in part if line["label"] == source] for part in (train, held_out)]
        assert len(places[0]) == 32 and len(places[1]) == 8
        assert max(places[0]) < 0.81 * len(text) and min(places[1]) > 0.79 * len(text)
        assert max(places[0]) < min(places[1])
    assert all(len(line["text"].split()) == WORDS for line in train + held_out)
    assert not any("<unk>" in line["text"] or "@-@" in line["text"] for line in train + held_out)


def test_a_rejected_description_is_of_other_facts_and_no_prompt_is_on_both_sides(assets: Path) -> None:
    from preferences import descriptions, preference_set

    of = descriptions()
    train, held_out = preference_set()
    assert 0.99 * sum(map(len, of.values())) < len(train) + len(held_out)
    for line in train + held_out:
        assert line["chosen"] in of[line["prompt"]] and line["rejected"] not in of[line["prompt"]]
    assert not {line["prompt"] for line in train} & {line["prompt"] for line in held_out}
    assert preference_set() == (train, held_out)
