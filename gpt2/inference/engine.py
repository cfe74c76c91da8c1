"""Many texts at a time through one runner, each as the plain loop would write it alone.

`generate` and `stream` take what the plain loop takes; `astream` is for many callers at once; `add`, `step` and
`cancel` are what they are made of. A text depends on its prompt and settings alone, not on what else is written.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from gpt2.errors import UserError
from gpt2.inference.driver import Driver
from gpt2.inference.jobs import Job, Stats, Turn, draft_room, take
from gpt2.inference.request import Request, Span, State
from gpt2.inference.rows import Overflow, Piece, Prompt, Result, Row, Text
from gpt2.inference.sampling import SamplingParams
from gpt2.inference.scheduler import MAX_STREAMS, Scheduler

if TYPE_CHECKING:
    from gpt2.inference.runners.base import Runner
    from gpt2.inference.speculate import Drafter
    from gpt2.tokenizer.bpe import Tokenizer

Params = SamplingParams | Sequence[SamplingParams] | None
Adapters = int | Sequence[int]


class Model(Protocol):
    """What an engine is made of: gpt2.Model is one."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def runner(self, streams: int) -> Runner:
        """A runner with pages for so many texts of full length."""
        ...


class Engine:
    """Writes with a model, or with a (runner, tokenizer); at most `max_streams` texts at a time, the rest wait.

    `drafter` guesses what comes next (see speculate.py) and changes no text. `adapter` is the number of one of the
    runner's, from 1 on, and 0 the base as it is. Any thread may call any method.
    """

    def __init__(
        self, model: Model | tuple[Runner, Tokenizer], max_streams: int = MAX_STREAMS, drafter: Drafter | None = None
    ) -> None:
        self.runner, self.tokenizer = (
            model if isinstance(model, tuple) else (model.runner(max_streams), model.tokenizer)
        )
        check_vocabulary(self.runner, self.tokenizer)
        self.max_streams, self.drafter = max_streams, drafter
        self._counted = Stats()
        self._tickets = itertools.count()
        self._lock = threading.Lock()
        self._driver = Driver(self.step)
        self._begin()

    def generate(
        self, prompts: Sequence[Prompt], params: Params = None, overflow: Overflow = "slide", adapter: Adapters = 0
    ) -> list[Result]:
        """Continue each prompt (text, or token ids) `n` times; the results of the first prompt come first.

        `params` and `adapter` are for all, or one for each prompt. As the plain loop's `generate`, its errors too.
        Those that may become longest are begun first, so that few are left at the end.
        """
        results: dict[int, Result] = {}
        texts = self._texts(prompts, params, overflow, adapter)
        longest_first = sorted(range(len(texts)), key=lambda place: -texts[place].params.max_new_tokens)
        for piece in self._follow(texts, longest_first):
            if piece.result:
                results[piece.row] = piece.result
        return [results[row] for row in sorted(results)]

    def stream(
        self, prompts: Sequence[Prompt], params: Params = None, overflow: Overflow = "slide", adapter: Adapters = 0
    ) -> Iterator[Piece]:
        """`generate`, piece by piece as the text becomes certain; closing the iterator cancels what is left."""
        texts = self._texts(prompts, params, overflow, adapter)
        yield from self._follow(texts, range(len(texts)))

    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None, overflow: Overflow = "slide", adapter: int = 0
    ) -> AsyncIterator[Piece]:
        """One prompt's pieces, beside those of other callers; one that goes away cancels its own and no other.

        The steps run in a thread. A request's error is raised here, and only here.
        """
        job = self.add(prompt, params, overflow, adapter)
        left = job.rows
        try:
            while left:
                while job.inbox:
                    piece = take(job.inbox)
                    left -= piece.result is not None
                    yield piece
                if left:
                    await self._driver.step()
        finally:
            self.cancel(job)

    def add(
        self, prompt: Prompt, params: SamplingParams | None = None, overflow: Overflow = "slide", adapter: int = 0
    ) -> Job:
        """Put one prompt in the queue; `step` until its inbox has the results of its n rows, or an error."""
        (text,) = self._texts([prompt], params, overflow, adapter)
        return self._enter(text, 0, deque())

    def cancel(self, job: Job) -> None:
        """Stop what is left of it: at once, or after the step that is running."""
        self._unwanted.append(job)
        if self._lock.acquire(blocking=False):
            try:
                self._sweep()
            finally:
                self._lock.release()

    def step(self) -> bool:
        """Read and write on, one step for everybody; False when nothing is left to do."""
        with self._lock:
            self._sweep()
            self._let_in()
            try:
                self._draft()
                plan = self.scheduler.plan()
                if plan:
                    self._counted.steps += 1
                    self._run(plan)
            except BaseException as error:
                self._abandon(error)
                raise
            return self.scheduler.busy or bool(self._arrived)

    @property
    def stats(self) -> Stats:
        """What was done since the engine was made."""
        self._counted.shared, self._counted.preemptions = self.scheduler.shared, self.scheduler.preemptions
        return self._counted

    def _begin(self) -> None:
        runner = self.runner
        limits = (runner.max_tokens, runner.max_outputs, self.max_streams)
        self.scheduler = Scheduler(runner.pages, *limits, runner.rings)
        self._jobs: dict[Request, Job] = {}
        self._arrived: deque[Request] = deque()
        self._unwanted: deque[Job] = deque()

    def _abandon(self, error: BaseException) -> None:
        """Ctrl-C, or worse, within a step: nobody knows what the pages hold, so all begins anew."""
        for job in set(self._jobs.values()):
            job.requests.clear()
            job.inbox.append(error if isinstance(error, Exception) else RuntimeError("the engine was interrupted"))
        if self.drafter:
            for request in self._jobs:
                self.drafter.forget(request)
        self._begin()

    def _texts(self, prompts: Sequence[Prompt], params: Params, overflow: Overflow, adapter: Adapters) -> list[Text]:
        """Prompts as the model reads them; UserError for the first that cannot be."""
        if isinstance(prompts, str):
            raise TypeError("prompts is a list: [prompt]")
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but settings for {len(params)}")
        adapters = [adapter] * len(prompts) if isinstance(adapter, int) else adapter
        if len(adapters) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but adapters for {len(adapters)}")
        self._check_adapters(adapters)
        config = self.runner.config
        texts = [
            Text(config, self.tokenizer, prompt, settings, overflow, place, number)
            for place, (prompt, settings, number) in enumerate(zip(prompts, params, adapters, strict=True))
        ]
        for text in texts:
            self.scheduler.check(len(text.prompt), text.params.max_new_tokens, config.context_length)
        for text in texts:
            text.say_what_was_dropped()
        return texts

    def _check_adapters(self, numbers: Sequence[int]) -> None:
        known = getattr(self.runner, "adapters", 0)
        for number in numbers:
            if not 0 <= number <= known:
                raise UserError(f"adapter {number}: the model was loaded with {known}; 0 is the base without any")

    def _follow(self, texts: Sequence[Text], order: Sequence[int]) -> Iterator[Piece]:
        """Enter the texts in this order and step until all are done."""
        inbox: deque[Piece | Exception] = deque()
        *firsts, left = itertools.accumulate((text.params.n for text in texts), initial=0)
        jobs = [self._enter(texts[place], firsts[place], inbox) for place in order]
        try:
            while left:
                while inbox:
                    piece = take(inbox)
                    left -= piece.result is not None
                    yield piece
                if left:
                    self.step()
        finally:
            for job in jobs:
                self.cancel(job)

    def _enter(self, text: Text, first_row: int, inbox: deque[Piece | Exception]) -> Job:
        rows = [Row(text, first_row + sample, sample) for sample in range(text.params.n)]
        order = next(self._tickets), 0
        request = Request(list(text.prompt), self.runner.config.context_length, rows, order, text.adapter)
        job = self._jobs[request] = Job(len(rows), inbox, {request})
        self._arrived.append(request)
        return job

    def _let_in(self) -> None:
        while self._arrived:
            request = self._arrived.popleft()
            if request.state is not State.OVER:  # cancelled before its turn
                self.scheduler.add(request)

    def _draft(self) -> None:
        """Guesses for those that write, as far as a step has room for them."""
        writing = self.scheduler.writing() if self.drafter else []
        if self.drafter and writing:
            share = min(self.scheduler.max_drafts // len(writing), self.scheduler.max_span - 1)
            wants = [(request, min(share, draft_room(request))) for request in writing]
            for request, drafts in zip(writing, self.drafter.propose(wants), strict=True):
                request.drafts = drafts

    def _run(self, plan: dict[Request, Span]) -> None:
        try:
            turns = self._choose(plan)
        except Exception as error:
            self._one_by_one(plan, error)
            return
        for request, span in plan.items():
            if request.state is State.OVER:  # another sample of its prompt has just failed
                continue
            try:
                self._commit(request, span, turns[request])
            except Exception as error:
                self._fail(request, error)
        copies, ring_copies = self.scheduler.copies, self.scheduler.ring_copies
        if copies or ring_copies:
            self.runner.copy_pages(copies, ring_copies)
            copies.clear()
            ring_copies.clear()

    def _one_by_one(self, plan: dict[Request, Span], error: Exception) -> None:
        """A step failed: find out at whom, and take it for the others. Reading a span twice does no harm."""
        if len(plan) == 1:
            self._fail(next(iter(plan)), error)
            return
        for request, span in plan.items():
            if request.state is not State.OVER:
                self._run({request: span})

    def _choose(self, plan: dict[Request, Span]) -> dict[Request, list[Turn]]:
        """Read, and choose for every row that is to have a token; an exception leaves everything as it was."""
        self.runner.step(list(plan.values()))
        turns: dict[Request, list[Turn]] = {}
        at = 0
        for request, span in plan.items():
            turns[request] = [Turn(request, row, at) for row in request.rows] if span.outputs else []
            at += span.outputs
        going = [turn for each in turns.values() for turn in each]
        try:
            while going:
                choices = self.runner.choose([turn.ask() for turn in going])
                going = [turn for turn, choice in zip(going, choices, strict=True) if turn.take(choice)]
        except Exception:
            for request in plan:
                for row in request.rows:
                    row.random.put_back()
            raise
        return turns

    def _commit(self, request: Request, span: Span, turns: Sequence[Turn]) -> None:
        """What was read and chosen becomes part of the texts."""
        self._counted.read += len(span.tokens)
        if len(turns) == 1:
            self._go_on(request, span, turns[0])
            return
        self.scheduler.advance(request, len(span.tokens))
        if turns:
            self._split(request, turns)

    def _go_on(self, request: Request, span: Span, turn: Turn) -> None:
        """One row's next tokens, as many as were right of what was guessed, and one more."""
        drafted, accepted = len(request.drafts), len(turn.choices) - 1
        tokens = self._write(request, turn)
        if drafted and self.drafter:
            self.drafter.learn(request, drafted, accepted)
            self._counted.drafted += drafted
            self._counted.accepted += accepted
        request.drafts = ()
        self.scheduler.advance(request, len(span.tokens) - drafted + min(accepted, len(tokens)), tokens)
        if turn.row.finish_reason:
            self._finish(request)

    def _split(self, request: Request, turns: Sequence[Turn]) -> None:
        """The prompt is read: from here on each of its samples is a request of its own."""
        written = [(turn.row, self._write(request, turn)) for turn in turns]
        live = [(row, tokens) for row, tokens in written if not row.finish_reason]
        if not live:
            self._finish(request)
            return
        request.rows = [live[0][0]]
        job = self._jobs[request]
        for row, tokens in live[1:]:
            twin = self.scheduler.fork(request, row)
            self._jobs[twin] = job
            job.requests.add(twin)
            self.scheduler.advance(twin, 0, tokens)
        self.scheduler.advance(request, 0, live[0][1])

    def _write(self, request: Request, turn: Turn) -> list[int]:
        tokens, piece = turn.write()
        self._counted.tokens += len(tokens)
        if piece:
            self._jobs[request].inbox.append(piece)
        return tokens

    def _finish(self, request: Request) -> None:
        self.scheduler.finish(request)
        self._jobs.pop(request).requests.discard(request)
        if self.drafter:
            self.drafter.forget(request)

    def _fail(self, request: Request, error: Exception) -> None:
        """One request's error ends all samples of its prompt, and nothing else."""
        job = self._jobs[request]
        job.inbox.append(error)
        for other in tuple(job.requests):
            self._finish(other)

    def _sweep(self) -> None:
        """Let go of what was cancelled."""
        while self._unwanted:
            for request in tuple(self._unwanted.popleft().requests):
                self._finish(request)


def check_vocabulary(runner: Runner, tokenizer: Tokenizer) -> None:
    """Refuse a runner that could write tokens without a text."""
    known = getattr(runner, "vocab_size", runner.config.vocab_size)
    if known > tokenizer.vocab_size:
        raise ValueError(
            f"the runner chooses from {known} tokens, the tokenizer knows {tokenizer.vocab_size}: "
            f"make the runner with vocab_size={tokenizer.vocab_size}"
        )
