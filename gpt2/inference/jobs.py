"""What the engine keeps of a prompt while its texts are written, and of a row while its tokens are chosen."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gpt2.inference.choose import Ask
from gpt2.inference.request import Request
from gpt2.inference.rows import Piece, Row
from gpt2.inference.sampling import Choice


@dataclass
class Stats:
    """What an engine has done so far."""

    steps: int = 0
    tokens: int = 0  # written
    read: int = 0  # by the runner: prompts, what was written, drafts, and what had to be read again
    shared: int = 0  # found in the pages instead of read
    preemptions: int = 0  # requests that gave way to older ones, as pages ran out
    drafted: int = 0
    accepted: int = 0

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens that were right."""
        return self.accepted / self.drafted if self.drafted else 0.0


@dataclass(eq=False)
class Job:
    """One prompt in the engine; the pieces of its rows, or the error that ended them, come to the inbox."""

    rows: int
    inbox: deque[Piece | Exception]
    requests: set[Request] = field(default_factory=set)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return not self.requests


def take(inbox: deque[Piece | Exception]) -> Piece:
    """The next piece; raises the error if that is what came."""
    piece = inbox.popleft()
    if isinstance(piece, Exception):
        raise piece
    return piece


@dataclass
class Turn:
    """One row's choices in one step: `at` is the row of logits that the next is made from."""

    request: Request
    row: Row
    at: int
    choices: list[Choice] = field(default_factory=list)

    def ask(self) -> Ask:
        text, output = self.row.text, self.row.tokens
        if self.choices:
            output = output + [choice.token for choice in self.choices]
        return Ask(self.at, text.prompt, output, text.params, self.row.random)

    def take(self, choice: Choice) -> bool:
        """Add a choice; True if the one after it counts too, as the guess that it stands on was right."""
        place, drafts = len(self.choices), self.request.drafts
        self.choices.append(choice)
        self.at += 1
        return place < len(drafts) and drafts[place] == choice.token

    def write(self) -> tuple[list[int], Piece | None]:
        """Add the choices to the row, up to its end; what was written, and what can be shown."""
        row, shown, written = self.row, "", len(self.row.tokens)
        for choice in self.choices:
            shown += row.push(choice)
            if row.finish_reason:
                break
        result = row.result() if row.finish_reason else None
        return row.tokens[written:], Piece(row.index, shown, result) if shown or result else None


def draft_room(request: Request) -> int:
    """So many tokens may be guessed at most: the window holds them, and one more at least is to be written."""
    (row,) = request.rows
    left = row.text.params.max_new_tokens - len(row.tokens) - 1
    return min(left, request.context_length - len(request.window))
