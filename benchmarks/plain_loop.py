"""The peer: a plain PyTorch GPT-2 and training loop in the manner of nanoGPT, with nothing of ours in it.

nanoGPT's README recipe for a processor is the default: 4 layers, 128 wide, context 64, batch 12, 2,000 steps of
AdamW in float32 on characters of tinyshakespeare, an estimate of both losses every 250 steps.

    python benchmarks/plain_loop.py tinyshakespeare.txt
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2) for p in self.qkv(self.ln_1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.ln_2(x))))


class Plain(nn.Module):
    def __init__(self, vocabulary: int, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.wte.weight
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                scale = 1 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.ln_f(x)).flatten(0, 1), targets.flatten())


def rate(step: int, steps: int, top: float, warmup: int = 100) -> float:
    if step < warmup:
        return top * (step + 1) / (warmup + 1)
    done = (step - warmup) / (steps - warmup)
    return top / 10 + 0.5 * (1 + math.cos(math.pi * done)) * (top - top / 10)


def windows(ids: Tensor, rows: int, context: int) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(ids) - context, (rows,))
    return torch.stack([ids[i : i + context] for i in starts]), torch.stack(
        [ids[i + 1 : i + 1 + context] for i in starts]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--rows", type=int, default=12)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    symbols = {symbol: index for index, symbol in enumerate(sorted(set(text)))}
    ids = torch.from_numpy(np.array([symbols[symbol] for symbol in text]))
    train, val = ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :]

    torch.manual_seed(1337)
    model = Plain(len(symbols), args.layers, args.width, args.heads, args.context)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    for step in range(args.steps):
        if step % 250 == 0:
            with torch.no_grad():
                for part in (train, val):
                    for _ in range(20):
                        model(*windows(part, args.rows, args.context))
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps, 1e-3)
        model(*windows(train, args.rows, args.context)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    trained = time.time()
    print(json.dumps({"trained_at": trained, "val_loss": score(model, val, args.context)}))


@torch.no_grad()
def score(model: Plain, ids: Tensor, context: int) -> float:
    """Mean loss over every held-out character but the first, in windows without overlap."""
    total = 0.0
    for start in range(0, len(ids) - 1, context):
        stop = min(start + context, len(ids) - 1)
        total += float(model(ids[None, start:stop], ids[None, start + 1 : stop + 1])) * (stop - start)
    return total / (len(ids) - 1)


if __name__ == "__main__":
    main()
