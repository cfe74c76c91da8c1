"""Packed examples: the gradient is that of each example alone, and of what is to be learned alone."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make
from torch import Tensor
from torch.nn import functional as F

from gpt2.data.encoded import Encoded, Encodings, Pairs
from gpt2.data.packing import pack
from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.model.config import IGNORE_INDEX
from gpt2.model.gpt import GPT
from gpt2.model.lora import LoRAConfig, apply_lora
from gpt2.train.completion import CompletionLoss
from gpt2.train.example_batches import ExampleBatches, Rows, choose_room, validation_batches
from gpt2.train.fused_weights import FusedWeights
from gpt2.train.loop import Batch, TokenLoss
from gpt2.train.lora_weights import LoRAWeights

CONTEXT = 64

example = st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(0, 2**31))
examples = st.lists(example, min_size=1, max_size=7)


def encoded(shape: tuple[int, int, int], low: int = 0, high: int = 257) -> Encoded:
    """Random ids: so many of a prompt, so many learned."""
    prompt, completion, seed = shape
    ids = np.random.default_rng(seed).integers(low, high, prompt + completion).astype(np.int32)
    return Encoded(ids, np.arange(len(ids)) >= prompt)


def together(parts: list[Encoded]) -> Encodings:
    ends = np.cumsum([len(part.ids) for part in parts], dtype=np.int64)
    starts = ends - [len(part.ids) for part in parts]
    labels = np.array([part.label for part in parts], np.int32)
    ids, wanted = np.concatenate([part.ids for part in parts]), np.concatenate([part.wanted for part in parts])
    return Encodings(ids, wanted, starts, ends, labels)


def packed(parts: list[Encoded], seed: int = 0, ranks: Ranks = ALONE) -> Batch:
    return Rows(together(parts), CONTEXT).batch(np.arange(len(parts)), seed, ranks)


def gradients(model: GPT, loss: Tensor) -> dict[str, Tensor]:
    names, tensors = zip(*((name, p) for name, p in model.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad(loss, tensors, allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(names, found, strict=True)}


def plain_loss(model: GPT, part: Encoded) -> Tensor:
    """The slow way: one example, a row of its own, the logits of what is learned and nothing else."""
    logits = model(torch.from_numpy(part.ids[None, :-1].astype(np.int64)))[0]
    wanted = torch.from_numpy(part.wanted[1:])
    return F.cross_entropy(logits[wanted], torch.from_numpy(part.ids[1:].astype(np.int64))[wanted], reduction="sum")


@pytest.fixture(scope="module")
def models() -> dict[str, GPT]:
    full, lora = make(scale=4.0), make(scale=4.0)
    apply_lora(lora, LoRAConfig(rank=4))
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0.0, 0.02)
    return {"full": full.train(), "lora": lora.train()}


@pytest.mark.parametrize("method", ["full", "lora"])
@settings(max_examples=25, deadline=None)
@given(examples, st.integers(0, 2**31))
def test_a_packed_gradient_is_the_sum_of_the_examples_own_and_knows_no_prompt_targets(
    models: dict[str, GPT], method: str, shapes: list[tuple[int, int, int]], seed: int
) -> None:
    model, parts = models[method], [encoded(shape) for shape in shapes]
    batch = packed(parts, seed)
    found = gradients(model, CompletionLoss().loss(model, batch))
    for name, gradient in gradients(model, TokenLoss().loss(model, batch)).items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=2e-5 * float(gradient.abs().max() + 1)), name
    expected = gradients(model, sum((plain_loss(model, part) for part in parts), torch.zeros(())))
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=2e-5 * float(gradient.abs().max() + 1)), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=15, deadline=None)
@given(st.lists(example, min_size=2, max_size=6), st.integers(0, 2**31))
def test_nothing_of_a_neighbour_from_which_nothing_is_learned_gets_any_gradient(
    dtype: torch.dtype, shapes: list[tuple[int, int, int]], seed: int
) -> None:
    """Where the head is not tied, a token's embedding has a gradient only if something learned looks at it, else 0."""
    model = make(tie_head=False)
    weights = FusedWeights(model, dtype) if dtype == torch.bfloat16 else None
    worker = model.train() if weights is None else weights.worker.train()
    first = encoded(shapes[0], 0, 128)
    others = [encoded(shape, 128, 257) for shape in shapes[1:]]
    silent = [Encoded(part.ids, np.zeros_like(part.wanted)) for part in others]
    found = gradients(worker, CompletionLoss().loss(worker, packed([first, *silent], seed)))
    assert not found["wte.weight"][128:].any()
    assert found["wte.weight"][:128].any()
    alone = gradients(worker, CompletionLoss().loss(worker, packed([first])))
    for name, gradient in alone.items():
        close = 1e-5 if dtype == torch.float32 else 0.05
        assert torch.allclose(
            found[name].float(), gradient.float(), rtol=close, atol=close * float(gradient.abs().max())
        )


@settings(max_examples=10, deadline=None)
@given(examples, st.integers(0, 2**31))
def test_an_adapter_s_gradients_through_the_kernels_are_the_plain_ones(
    models: dict[str, GPT], shapes: list[tuple[int, int, int]], seed: int
) -> None:
    plain, short = models["lora"], copy.deepcopy(models["lora"])
    for parameter in short.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    worker, batch = LoRAWeights(short, torch.bfloat16).worker, packed([encoded(shape) for shape in shapes], seed)
    expected = gradients(plain, TokenLoss().loss(plain, batch))
    for name, gradient in gradients(worker, CompletionLoss().loss(worker, batch)).items():
        assert gradient.dtype == torch.float32
        assert float((gradient - expected[name]).norm()) < 0.1 * float(expected[name].norm()) + 1e-4, name


@settings(max_examples=25, deadline=None)
@given(examples, st.integers(1, 5), st.integers(0, 2**31))
def test_ranks_share_rows_of_one_length_evenly_and_lose_none(
    shapes: list[tuple[int, int, int]], size: int, seed: int
) -> None:
    parts = [encoded(shape) for shape in shapes]
    dealt = [packed(parts, seed, Ranks(rank, rank, size, rank, size)) for rank in range(size)]
    assert len({batch.inputs.shape for batch in dealt}) == 1
    assert sum(batch.tokens or 0 for batch in dealt) == sum(part.positions for part in parts)
    learned = Counter(int(t) for batch in dealt for t in batch.targets.flatten() if t != IGNORE_INDEX)
    assert learned == Counter(int(t) for part in parts for t in part.ids[1:][part.wanted[1:]])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
def test_each_pass_has_every_example_once_and_a_step_depends_on_its_number_alone(
    size: int, count: int, seed: int
) -> None:
    parts = together([encoded((1, 1, n)) for n in range(size)])
    batches = ExampleBatches(Rows(parts, CONTEXT), min(count, size), seed)
    drawn = [int(n) for step in range(3 * size) for n in batches.numbers(step)]
    for start in range(0, 3 * size - size + 1, size):
        assert sorted(drawn[start : start + size]) == list(range(size))
    again = ExampleBatches(Rows(parts, CONTEXT), min(count, size), seed)
    again.load({"steps": 2})
    assert torch.equal(again.next(2).inputs, batches.next(2).inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_from_which_nothing_is_learned_have_no_gradient(dtype: torch.dtype) -> None:
    model = make()
    worker = model.train() if dtype == torch.float32 else FusedWeights(model, dtype).worker.train()
    silent = encoded((5, 5, 1))
    batch = packed([Encoded(silent.ids, np.zeros_like(silent.wanted))])
    loss = CompletionLoss().loss(worker, batch)
    assert loss.item() == 0.0
    assert not any(gradient.any() for gradient in gradients(worker, loss).values())


def test_labels_stand_where_their_texts_end() -> None:
    parts = [Encoded(part.ids, part.wanted, label) for label, part in enumerate(encoded((3, 5, n)) for n in range(12))]
    batch = packed(parts)
    rows, slots = (batch.extra["ends"] >= 0).nonzero(as_tuple=True)
    assert sorted(batch.extra["labels"][rows, slots].tolist()) == list(range(12))
    for row, slot in zip(rows.tolist(), slots.tolist(), strict=True):
        label, end = int(batch.extra["labels"][row, slot]), int(batch.extra["ends"][row, slot])
        assert batch.inputs[row, end - 6 : end + 1].tolist() == parts[label].ids[:-1].tolist()


def test_a_pair_has_a_row_with_its_reference() -> None:
    chosen, rejected = (together([encoded((4, 3 + side, n)) for n in range(5)]) for side in range(2))
    pairs = Pairs(chosen, rejected)
    room = choose_room(pairs, 8)
    assert room >= int(pairs.positions.max()) > 8
    rows = Rows(pairs, room, reference=np.arange(5, dtype=np.float32))
    batch = rows.batch(np.array([3, 1]), 0)
    assert batch.extra["reference"].tolist() == [3.0, 1.0]
    assert batch.inputs[0, :6].tolist() == pairs[3].chosen.ids[:-1].tolist()
    assert batch.inputs[0, 6:13].tolist() == pairs[3].rejected.ids[:-1].tolist()


def test_validation_reads_the_same_examples_each_time_from_all_over_a_sorted_file() -> None:
    parts = [replace(encoded((30, 30, n)), label=n // 100) for n in range(200)]
    rows = Rows(together(parts), CONTEXT)
    batches, again = (list(validation_batches(rows, 100, "cpu")) for _ in range(2))
    assert sum(batch.tokens or 0 for batch in batches) == 100 * parts[0].positions
    assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(batches, again, strict=True))
    labels = torch.cat([batch.extra["labels"].flatten() for batch in batches])
    assert all(30 <= int((labels == label).sum()) <= 70 for label in (0, 1))


def test_validation_reads_everything_once_where_that_is_not_too_much() -> None:
    parts = [encoded((30, 30, n)) for n in range(200)]
    batches = list(validation_batches(Rows(together(parts), CONTEXT), 1000, "cpu"))
    assert sum(batch.tokens or 0 for batch in batches) == sum(part.positions for part in parts)
    assert len(batches) > 1


def test_a_rank_without_labelled_texts_hands_over_the_same_names() -> None:
    rows = Rows(together([replace(encoded((30, 3, 0)), label=1)]), CONTEXT)
    empty = [rows.batch(np.array([0]), 0, Ranks(r, r, 2, r, 2)).extra["labels"] for r in range(2)]
    assert sorted((part >= 0).sum().item() for part in empty) == [0, 1]


@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.integers(0, 9), st.sampled_from([1, 2, 4]))
def test_rows_are_as_long_as_takes_the_fewest_tokens(sizes: list[int], seed: int, ranks: int) -> None:
    rows = Rows(together([encoded((1, size, 0)) for size in sizes]), 64, grain=8)
    lengths = rows.examples.positions[np.arange(len(sizes))]
    found, room = rows.laid_out(lengths, seed, ranks)
    assert sorted(place for row in found for place in row) == list(range(len(sizes)))
    assert room % 8 == 0 and all(int(lengths[row].sum()) <= room for row in found)
    shortest = -(-int(lengths.max()) // 8) * 8
    for other in range(shortest, 65, 8):
        count = -(-len(pack(lengths, other, seed)) // ranks) * ranks
        assert -(-len(found) // ranks) * ranks * room <= count * other


def test_a_batch_that_would_leave_half_a_row_empty_gets_shorter_rows() -> None:
    rows = Rows(together([encoded((1, 35 + 4 * number, number)) for number in range(16)]), 256)
    lengths = rows.examples.positions[np.arange(16)]  # 1,040 tokens: five rows of 256 hold 1,280
    found, room = rows.laid_out(lengths, 0, 1)
    assert len(found) * room < 1.1 * lengths.sum()
    fixed = Rows(rows.examples, 256, grain=256)  # a GPU's attention is made for one length
    assert fixed.laid_out(lengths, 0, 1)[1] == 256
