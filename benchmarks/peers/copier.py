"""GPT-2 124M with weights written by hand, so that it copies its prompt: for measuring speed on text that repeats.

The first layer brings to every position the codes of the tokens just before it; the second looks for the place where
the same tokens stood in a row and says what followed there (induction heads: Elhage et al. 2021, Olsson et al. 2022).
The other ten layers, the MLPs and the idle heads hold small random numbers: they change next to nothing and cost what
they cost. `rename` makes it write other tokens in the place of some. Confidence is such that, sampled at temperature 1,
about one token in twenty is another. `prompter` is a model that writes a given text whatever it has read: for what no
copier would write, such as real prose.

    residual stream, 768:  P position 64 | M match code of the token 32 | A code that the head reads 128
                           V code to be copied 128 | H match codes of the twelve tokens before, 32 each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gpt2.model.config import GPTConfig

Array = np.ndarray
CONFIG = GPTConfig()  # GPT-2 124M
HEAD = CONFIG.head_dim
BACK, CODE = 12, 32  # tokens before that each position knows (a head each), signs in a token's match code
P, M, A, V = slice(0, 64), slice(64, 96), slice(128, 256), slice(256, 384)
H = [slice(384 + CODE * back, 384 + CODE * (back + 1)) for back in range(BACK)]
NOISE = 0.002  # spread of what is near zero
LOOK_BACK = 2.0  # sharpness of the first layer's heads
MATCH = 10.0  # of the second's: each further token of agreement is worth about seven nats
COPY = 8.0  # what is copied outweighs the token's own code so many times
CONFIDENCE = 15.0  # logit of the copied token; the others' spread is an eleventh of it
SAID = 64.0  # what a position says outweighs what is copied there


def copier(rename: Mapping[int, int] | None = None, seed: int = 0) -> dict[str, Array]:
    """The weights under our names, float32, `nn.Linear` orientation. It writes rename[t] where the prompt has t."""
    dice = np.random.default_rng(seed)
    state = _near_zero(dice)
    state["wpe.weight"], turn = _positions(dice)
    state["wte.weight"] = _tokens(dice, rename or {})
    _previous_tokens(state, turn)
    _induction(state, dice)
    _read_code(state, COPY)
    return state


def prompter(text: Sequence[int], prompt: int, seed: int = 0) -> dict[str, Array]:
    """The copier's weights, but after `prompt` tokens it writes `text`, token by token, each given by its position."""
    state = copier(seed=seed)
    state["wpe.weight"][prompt - 1 : prompt - 1 + len(text), A] = SAID * state["wte.weight"][list(text), A]
    _read_code(state, SAID)
    return state


def in_memory(weights: Mapping[str, Array]) -> dict[str, Array]:
    """The same as the state of a torch module: the head too, and the rows that pad the vocabulary."""
    table = np.pad(weights["wte.weight"], ((0, CONFIG.padded_vocab_size - CONFIG.vocab_size), (0, 0)))
    return {**weights, "wte.weight": table, "lm_head.weight": table}


def _read_code(state: dict[str, Array], strength: float) -> None:
    """The head sees the one code only, which lies in the stream with this strength."""
    spread = np.sqrt((A.stop - A.start) * strength**2 / CONFIG.n_embd + 0.9)  # of the stream at the end
    state["ln_f.weight"][:] = 0.0
    state["ln_f.weight"][A] = CONFIDENCE / ((A.stop - A.start) * strength / spread)


def _near_zero(dice: np.random.Generator) -> dict[str, Array]:
    width, state = CONFIG.n_embd, {}
    shapes = {
        "attn.c_attn": (3 * width, width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (CONFIG.n_inner, width),
        "mlp.c_proj": (width, CONFIG.n_inner),
    }
    for layer in range(CONFIG.n_layer):
        for name, shape in shapes.items():
            state[f"h.{layer}.{name}.weight"] = NOISE * dice.standard_normal(shape, np.float32)
            state[f"h.{layer}.{name}.bias"] = np.zeros(shape[0], np.float32)
        state |= _norm(f"h.{layer}.ln_1") | _norm(f"h.{layer}.ln_2")
    return state | _norm("ln_f")


def _norm(name: str) -> dict[str, Array]:
    width = CONFIG.n_embd
    return {f"{name}.weight": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}


def _positions(dice: np.random.Generator) -> tuple[Array, list[Array]]:
    """Positions as 32 rotations, and for each step back the matrix that turns a position into the earlier one.

    The frequencies are the best of 200 draws: no two positions may look alike.
    """
    places = np.arange(CONFIG.context_length)
    draws = [np.pi * (np.arange(32) + dice.random(32)) / 32 for _ in range(200)]
    speeds = min(draws, key=lambda draw: np.cos(np.outer(places[1:], draw)).sum(1).max())
    angles = np.outer(places, speeds)
    table = np.zeros((CONFIG.context_length, CONFIG.n_embd), np.float32)
    table[:, P] = np.sqrt(2) * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    turns = []
    for back in range(1, BACK + 1):
        cos, sin = np.diag(np.cos(back * speeds)), np.diag(np.sin(back * speeds))
        turns.append(np.block([[cos, sin], [-sin, cos]]))
    return table, turns


def _tokens(dice: np.random.Generator, rename: Mapping[int, int]) -> Array:
    """Random signs: 128 of them are nearly orthogonal among 50,257 tokens."""
    table = np.zeros((CONFIG.vocab_size, CONFIG.n_embd), np.float32)
    table[:, M] = dice.choice([-1.0, 1.0], (CONFIG.vocab_size, CODE))
    table[:, A] = dice.choice([-1.0, 1.0], (CONFIG.vocab_size, 128))
    table[:, V] = table[:, A]
    for old, new in rename.items():
        table[old, V] = table[new, A]
    return table


def _head(state: dict[str, Array], layer: int, head: int) -> tuple[Array, Array, Array, Array]:
    """Views of one head's query, key and value rows (64, 768), cleared, and its columns (768, 64) of the output."""
    rows = state[f"h.{layer}.attn.c_attn.weight"].reshape(3, CONFIG.n_head, HEAD, CONFIG.n_embd)[:, head]
    columns = state[f"h.{layer}.attn.c_proj.weight"][:, head * HEAD : (head + 1) * HEAD]
    rows[:], columns[:] = 0.0, 0.0
    return rows[0], rows[1], rows[2], columns


def _previous_tokens(state: dict[str, Array], turns: list[Array]) -> None:
    """First layer: head k attends to the position k + 1 back and fetches that token's match code."""
    gain = np.sqrt(352 / 768)  # undoes the norm: half of the stream is empty yet
    for head, turn in enumerate(turns):
        query, key, value, out = _head(state, 0, head)
        query[:, P], key[:, P] = LOOK_BACK * turn, np.eye(HEAD)
        value[:CODE, M], out[H[head], :CODE] = np.eye(CODE), gain * np.eye(CODE)


def _induction(state: dict[str, Array], dice: np.random.Generator) -> None:
    """Second layer: every head finds the place before which the last tokens stood, by its own five signs of each.

    Half of the heads copy the first half of that place's code, half the second; they vote.
    """
    share = HEAD // BACK
    for head in range(CONFIG.n_head):
        query, key, value, out = _head(state, 1, head)
        for back, mine in enumerate([M, *H[: BACK - 1]]):  # the token itself and those before, there: one further back
            rows, signs = slice(back * share, (back + 1) * share), dice.permutation(CODE)[:share]
            query[rows, mine] = MATCH * np.eye(CODE)[signs]
            key[rows, H[back]] = np.eye(CODE)[signs]
        half = 64 * (head % 2)
        value[:, V.start + half : V.start + half + 64] = np.eye(64)
        out[A.start + half : A.start + half + 64] = COPY / (CONFIG.n_head // 2) * np.eye(64)
