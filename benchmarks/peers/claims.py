"""What is claimed of the measured figures, each with its limit; a claim without its figures is left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peers.engines import Format

Figures = Mapping[str, Mapping[Format, float]]  # part -> format -> median; "share": of the memory bandwidth

FOUR_BIT = (Format("llama.cpp", "q4_0"), Format("llama.cpp", "q4_K_M"))
DECODE = (
    ("float32", (Format("llama.cpp", "f32"),), 0.97),
    ("bfloat16", (Format("llama.cpp", "bf16"),), 0.97),
    ("int8", (Format("llama.cpp", "q8_0"),), 1.25),
    ("int4", FOUR_BIT, 1.25),
    ("int4-head", FOUR_BIT, 1.4),
)
STREAMS = Format("CTranslate2", "int8")
INT8 = Format("gpt2", "int8")


@dataclass(frozen=True)
class Claim:
    """`what` is `figure` and should be at least `least`."""

    what: str
    figure: float
    least: float

    def __str__(self) -> str:
        verdict = "held" if self.figure >= self.least else "missed"
        return f"| {self.what} | {self.figure:.2f} | {self.least:.2f} | {verdict} |"


def claims(figures: Figures) -> list[Claim]:
    """The claims of which both sides were measured."""
    return [*_decode(figures), *_prefill(figures), *_streams(figures)]


def _decode(figures: Figures) -> list[Claim]:
    rates, found = figures.get("decode", {}), []
    for kind, peers, least in DECODE:
        mine = Format("gpt2", kind)
        there = [peer for peer in peers if peer in rates]
        if mine in rates and there:
            best = max(there, key=lambda peer: rates[peer])
            found.append(Claim(f"one stream, {kind} / {best}", rates[mine] / rates[best], least))
        if mine in figures.get("share", {}):
            least = 0.75 if kind.startswith("int4") else 0.8
            found.append(Claim(f"one stream, {kind}: share of the bandwidth", figures["share"][mine], least))
    return found


def _prefill(figures: Figures) -> list[Claim]:
    rates, forward = figures.get("prefill", {}), figures.get("forward", {})
    peers = {format: rate for format, rate in rates.items() if format.engine != "gpt2"}
    if INT8 not in rates or not peers:
        return []
    found = [_against_best(INT8, rates, peers, "", 1.6)]
    if forward:
        found.append(_against_best(INT8, rates, peers | forward, ", CTranslate2 scoring every position", 1.6))
    short = Format("gpt2", "bfloat16")
    if short in rates:  # stands beside; the limit is "not behind"
        found.append(_against_best(short, rates, peers, "", 1.0))
    return found


def _against_best(
    mine: Format, rates: Mapping[Format, float], peers: Mapping[Format, float], note: str, least: float
) -> Claim:
    best = max(peers, key=lambda peer: peers[peer])
    return Claim(f"prefill 512, {mine.kind} / {best}{note}", rates[mine] / peers[best], least)


def _streams(figures: Figures) -> list[Claim]:
    rates, mixed, found = figures.get("streams", {}), figures.get("mixed", {}), []
    if INT8 in rates and STREAMS in rates:
        found.append(Claim(f"16 streams, int8 / {STREAMS}", rates[INT8] / rates[STREAMS], 2.7))
    for format, rate in mixed.items():
        if format in rates:
            found.append(Claim(f"64 mixed requests / a batch of 16, {format.kind}", rate / rates[format], 0.85))
    return found
