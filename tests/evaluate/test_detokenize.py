"""De-tokenizers lose nothing, and write as people do.

Real lines where the assets have them (WikiText-2, LAMBADA in the form that OpenAI read); of the other sets, lines in
the form that their publishers describe, composed here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.evaluate.detokenize import CBT, LAMBADA, ONE_BILLION, PTB, WIKITEXT, Style
from gpt2.evaluate.rows import plain_lines
from gpt2.evaluate.tasks.texts import units_of

DOCUMENTED = [  # (style, as published, as people write it); composed, each to hold what its set is known to write so
    (
        WIKITEXT,
        ' It weighs 0 @.@ 7 – 2 @.@ 2 kg ( 1 @.@ 5 – 4 @.@ 9 lb ) , and is " lobster red " on cooking . ',
        'It weighs 0.7 – 2.2 kg (1.5 – 4.9 lb), and is "lobster red" on cooking.',
    ),
    (WIKITEXT, " = = Description = = ", "== Description =="),
    (WIKITEXT, " ", ""),
    (
        WIKITEXT,
        " Linnaeus ' concept cost $ 15 @,@ 255 to the Trinidad @-@ born man . ",
        "Linnaeus' concept cost $15,255 to the Trinidad-born man.",
    ),
    (PTB, " no it was n't black monday ", "no it wasn't black monday"),
    (PTB, " mr. <unk> 's traders ' stock lost $ N million or N % ", "mr. <unk>'s traders' stock lost $N million or N%"),
    (
        LAMBADA,
        "`` figured if you 're going to be out , you might as well . '' i do n't care about signs",
        "\"figured if you're going to be out, you might as well.\" i don't care about signs",
    ),
    (CBT, "`` Well , '' -LRB- said he -RRB- I ca n't !", '"Well," (said he) I can\'t!'),
    (
        ONE_BILLION,
        'a Newsweek cover story titled " Crazy Talk : Oprah , Wacky Cures & You . "',
        'a Newsweek cover story titled "Crazy Talk: Oprah, Wacky Cures & You."',
    ),
    (ONE_BILLION, "Fish won 6-3 , 7-6 ( 7 / 4 ) and wasn 't tired .", "Fish won 6-3, 7-6 (7 / 4) and wasn't tired."),
]


@pytest.mark.parametrize(("style", "published", "written"), DOCUMENTED)
def test_documented_lines(style: Style, published: str, written: str) -> None:
    found = style.forward(published)
    assert found == written
    assert style.inverse(found) == published


def test_wikitext_2_comes_back_line_by_line_and_nearly_all_of_it_is_changed(assets: Path) -> None:
    text = (assets / "benchmarks" / "wikitext2_valid.txt").read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]
    changed = 0
    for line in lines:
        written = WIKITEXT.forward(line)
        assert WIKITEXT.inverse(written) == line
        changed += len(line.split()) if written != line or len(line.split()) < 2 else 0
    assert changed / len(text.split()) > 0.99  # the rest stays as it was published


def test_wikitext_2_has_its_published_numbers_of_words_and_tokens(assets: Path) -> None:
    rows = list(plain_lines([assets / "benchmarks" / "wikitext2_valid.txt"]))
    units = units_of("".join(row["text"] for row in rows))
    assert (units["word"], units["token"]) == (213_886, 217_646)


def test_openai_s_lambada_needs_no_de_tokenizer(assets: Path) -> None:
    """Its lines are as people write: those of the published form come near them, and come back as they were."""
    lines = (assets / "benchmarks" / "lambada_first1000.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert not any("``" in text or " n't" in text for text in texts)
    assert sum(" ," in text for text in texts) < 10
    published = (
        "i look at him , feeling stunned . like this is some sort of sign . but as i stare at harlin , i do n't care"
    )
    written = LAMBADA.forward(published)
    assert written.startswith("i look at him, feeling stunned. like this is some sort of sign. but")
    assert LAMBADA.inverse(written) == published


STYLES = [WIKITEXT, PTB, LAMBADA, CBT, ONE_BILLION]
NAMES = ["wikitext", "ptb", "lambada", "cbt", "1bw"]
WORDS = ["the", "Fish", "U.S.", "No.", "7", "1920s", "<unk>", "ca", "s", "N", "a.b", "'aak", "-LRB-", "-RRB-"]
MARKS = [",", ".", "...", "!", '"', "'", "``", "''", "(", ")", "[", "]", "$", "%", "=", "–", "-", "@-@", "@,@", "@.@"]
TOKENS = st.sampled_from([*WORDS, *MARKS, "'s", "'t", "n't"])


@pytest.mark.parametrize("style", STYLES, ids=NAMES)
@given(tokens=st.lists(TOKENS, max_size=12))
def test_any_line_of_tokens_comes_back(style: Style, tokens: list[str]) -> None:
    """But for one that is itself what another line is written as; a tokenizer would have parted it."""
    line = f" {' '.join(tokens)} " if style.edges else " ".join(tokens)
    if style.edges and not tokens:
        line = " "
    back = style.inverse(style.forward(line))
    assert back == line or style.forward(back) == line


@pytest.mark.parametrize("style", STYLES, ids=NAMES)
@given(line=st.text(st.characters(exclude_characters="\n"), max_size=40))
def test_any_text_comes_back(style: Style, line: str) -> None:
    back = style.inverse(style.forward(line))
    assert back == line or style.forward(back) == line
