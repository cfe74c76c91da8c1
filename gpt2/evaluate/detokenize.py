"""From a published, tokenised text back to one as people write it, and from there to the published one again.

GPT-2's paper (section 3.1) reads through "invertible de-tokenizers": since nothing is lost, the probability of the
text as people write it is that of the tokenised one. OpenAI's rules are not published; these are ours. To de-tokenise
a line is to leave out some spaces between its tokens and to write some tokens otherwise. A line of which the tokens
would not come back one by one stays as it is, so that `inverse(forward(line)) == line` for every tokenised line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

CLOSING = frozenset([",", ".", ";", ":", "!", "?", ")", "]", "%", "..."])
OPENING = frozenset(["(", "[", "$", "£"])
ABBREVIATION = re.compile(  # tokens that end in a point of their own: initials and what tokenizers keep together
    r"(?:[^\W\d_]\.)+|(?:no|nos|st|mr|mrs|ms|dr|bros|co|cos|corp|inc|ltd|jr|sr|vs|var|sgt|lt|col|gen|capt|maj|adm|gov|sen|rep"
    r"|rev|hon|prof|ph\.d|cpl|pvt|pp|cf|etc|al|mt|ft|ave|jan|feb|aug|sept|oct|nov|dec|messrs|subsp|spp)\.",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Style:
    """How a corpus was tokenised. One line at a time, without its line end.

    `clitics`: what was cut off behind a word. `quotes`: token -> how it is written; marks that are their own closing
    ones open and close in turn. `inner`: tokens that join both neighbours. `edges`: the line is set in spaces.
    """

    clitics: tuple[str, ...]
    quotes: dict[str, str] = field(default_factory=lambda: {'"': '"', "'": "'"})
    inner: dict[str, str] = field(default_factory=dict)
    plain: dict[str, str] = field(default_factory=dict)  # tokens that are only written otherwise
    closing: frozenset[str] = CLOSING
    edges: bool = False

    def forward(self, line: str) -> str:
        """The line as people write it, or as it was where the way back would lead elsewhere."""
        glued = self._glue(line)
        return glued if self._split(glued) == line else line

    def inverse(self, line: str) -> str:
        """The tokenised line that `forward` made this of."""
        tokens = self._split(line)
        return tokens if self.forward(tokens) == line else line

    def text(self, text: str) -> str:
        """`forward` for each line."""
        return "\n".join(map(self.forward, text.split("\n")))

    def _glue(self, line: str) -> str:
        written, before = "", " "
        joined = True  # nothing stands between the line's start and its first token
        opened: set[str] = set()
        for token in line.split():
            joins, text = self._left(token, before, opened)
            written += text if joined or joins else " " + text
            joined = self._joins_next(token, opened)
            before = token
        return written

    def _left(self, token: str, before: str, opened: set[str]) -> tuple[bool, str]:
        """Whether a token joins the one before it, and how it is written. Keeps account of quotes."""
        if token in self.quotes:
            return self._quote(token, before, opened), self.quotes[token]
        if token in self.inner:
            return True, self.inner[token]
        text = self.plain.get(token, token)
        joins = text in self.closing or token in self.clitics or (token == "=" == before)
        return joins or bool("'" in self.quotes and re.match(r"'\w", token)), text

    def _quote(self, token: str, before: str, opened: set[str]) -> bool:
        """A mark that closes joins what precedes; so does an apostrophe behind an s that opens nothing."""
        if token == "''" or token in opened:
            opened.discard(token)
            return True
        if token == "'" and before.endswith("s"):
            return True
        opened.add(token)
        return False

    def _joins_next(self, token: str, opened: set[str]) -> bool:
        return self.plain.get(token, token) in OPENING or token in self.inner or token in opened

    def _split(self, line: str) -> str:
        tokens = [token for word in line.split() for token in self._parts(word)]
        text = " ".join(tokens)
        return (f" {text} " if text else " ") if self.edges else text

    def _parts(self, word: str) -> list[str]:
        """The tokens of what stands between two spaces; most are words, of which nothing is cut off."""
        if word.isalnum():
            return [word]
        if set(word) == {"="}:
            return list(word)
        head, tail = [], []
        while len(word) > 1 and (word[0] in OPENING or word[0] in self._written):
            head.append(self._written[word[0]][0] if word[0] in self._written else word[0])
            word = word[1:]
        while mark := self._mark(word):
            tail.append(self._written[mark][-1] if mark in self._written else mark)
            word = word[: -len(mark)]
        back = {text: token for token, text in self.plain.items()}
        return [back.get(part, part) for part in (*head, *self._middle(word), *reversed(tail))]

    def _mark(self, word: str) -> str:
        """What is cut off at the word's end; nothing where it is all that there is, or part of an abbreviation."""
        for mark in (*self.clitics, "...", *self._written, *self.closing):
            if word.endswith(mark) and len(word) > len(mark):
                whole = mark == "." and (ABBREVIATION.fullmatch(word) or word.endswith(".."))
                return "" if whole else mark
        return ""

    def _middle(self, word: str) -> list[str]:
        for mark, text in self.inner.items():
            near = (r"(?<=\S)", r"(?=\S)") if text == "-" else (r"(?<=[\d>])", r"(?=[\d<])")
            word = re.sub(near[0] + re.escape(text) + near[1], f" {mark} ", word)
        if "'" in self.quotes:
            word = re.sub(r"(?<=\S)('\w)", r" \1", word)
        return word.split()

    @cached_property
    def _written(self) -> dict[str, list[str]]:
        """How quotes are written -> the token that opens and the one that closes."""
        found: dict[str, list[str]] = {}
        for token, text in self.quotes.items():
            found.setdefault(text, []).append(token)
        return found


ENGLISH = ("'s", "'t", "'m", "'ve", "'re", "'ll", "'d")
TREEBANK = ("n't", "'s", "'m", "'ve", "'re", "'ll", "'d")
LATEX = {"``": '"', "''": '"'}

WIKITEXT = Style(ENGLISH, inner={"@-@": "-", "@,@": ",", "@.@": "."}, edges=True)
PTB = Style((*TREEBANK, "'"), quotes={}, edges=True, closing=frozenset("%"))
ONE_BILLION = Style(ENGLISH)
LAMBADA = Style((*TREEBANK, "'"), LATEX)  # as in lambada_test_plain_text.txt; OpenAI's file needs nothing
CBT = Style((*TREEBANK, "'"), LATEX, plain={"-LRB-": "(", "-RRB-": ")"})
