"""The page of a run: whole in one file, for old lines and new ones, and no reason for a run to fail."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from gpt2.train import plots, report
from gpt2.train.config import TrainConfig
from gpt2.train.pretrain import pretrain
from gpt2.train.report import facts, render, write_report
from gpt2.train.words import clock, short

EVIL = '<script>alert(1)</script> & "quotes" </pre>\x00 ends'


def line(step: int, **changes: Any) -> dict[str, Any]:
    """As Log has written them since the first version."""
    old = {
        "step": step,
        "tokens": 100 * step,
        "train/loss": 4.0 - 0.01 * step,
        "grad_norm": 1.5 / step,
        "learning_rate": 0.001 * step,
        "tokens_per_second": 1000.0 + step,
        "mfu": 0.25,
        "elapsed": 2.0 * step,
    }
    return old | changes


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def pictures(page: Page) -> dict[str, bytes]:
    found = {}
    for tag, attributes in page.tags:
        if tag == "img":
            kind, _, data = str(attributes["src"]).partition(",")
            assert kind == "data:image/svg+xml;base64"
            found[str(attributes["alt"])] = base64.b64decode(data)
    return found


def test_the_page_of_a_run_needs_nothing_beside_it(tiny: Callable[..., TrainConfig]) -> None:
    run = pretrain(tiny(), quiet=True).folder
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    drawn = pictures(page)
    assert list(drawn) == [
        f"{name} against tokens" for name in ("Loss", "Throughput", "Gradient norm", "Learning rate")
    ]
    for svg in drawn.values():
        assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(r"(src|href)=\"(?!data:)|@import|url\(", text)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in page.tags
    assert "@media print" in text
    assert f"gpt2 train --resume {run}" in page.text
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_samples_come_step_by_step_and_no_text_becomes_markup(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    lines = [
        line(1),
        {"step": 1, "sample": "the earliest"},
        line(2),
        {"step": 2, "sample": EVIL},
        {"step": 3, "sample": 7},
    ]
    page = Page(render(tmp_path / "<script>&", tiny(), lines))
    assert page.text.index("after step 1") < page.text.index("the earliest") < page.text.index("after step 2")
    assert EVIL.replace("\x00", "") in page.text.replace("\x00", "").replace("\ufffd", "")
    assert "script" not in {tag for tag, _ in page.tags}


def test_old_lines_new_lines_and_damaged_ones_are_all_told(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = tiny(max_steps=9)
    old = dict(facts(config, [line(1), line(2)]))
    assert old["Trained"] == "2 of 9 steps, 200 tokens"
    assert old["Speed (median)"] == "1,002 tokens/s, 25% of peak"
    assert "Skipped steps" not in old
    new = [
        line(1),
        line(2, skipped=1, grad_norm=None, epochs={"web": 0.5, "books": 1.25}),
        line(3, mfu=None, skipped=2),
    ]
    new.append({"step": 3, "tokens": 300, "val/loss": 3.5, "val/perplexity": 33.1, "val_targets": 900})
    new.append({"step": 4, "tokens": 400, "val/loss": 3.75})
    told = dict(facts(config, new))
    assert told["Skipped steps"] == "2"
    assert told["Passes over each source"] == "web 0.50, books 1.25"
    assert told["Best validation loss"] == "3.5000 after step 3"
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in new) + '{"step": 5, "train/loss": "x", "tokens": []}\nrubbish\n',
        encoding="utf-8",
    )
    assert write_report(tmp_path, config) == tmp_path / "report.html"


def test_mesh_mixture_and_growing_batch_are_among_the_facts(tiny: Callable[..., TrainConfig]) -> None:
    plain = dict(facts(tiny(), [line(1)]))
    assert not {"Processes", "Mixture", "Batch grows", "Memory and speed"} & set(plain)
    changes = {"tp": 2, "dp_shard": 4, "recompute": "full", "mixture": ("web=0.8",), "micro_batch_size": 3}
    told = dict(facts(replace(tiny(), **changes, batch_ramp_tokens=5000, batch_ramp_from=64), [line(1)]))
    assert told["Processes"] == "dp_replicate 1 x dp_shard 4 x tp 2"
    assert told["Mixture"] == "web=0.8"
    assert told["Batch"] == "128 tokens, 3 rows at a time in each process"
    assert told["Batch grows"] == "from 64 tokens, over the first 5k tokens"
    assert told["Memory and speed"] == "recompute full"


@pytest.mark.parametrize("trouble", ["full", "gone"])
def test_a_page_that_cannot_be_written_is_one_line(
    tiny: Callable[..., TrainConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
) -> None:
    def refuse(path: Path, data: object) -> None:
        raise OSError(28, "No space left on device")

    run = tmp_path / "run"
    if trouble == "full":
        run.mkdir()
        (run / "metrics.jsonl").write_text(json.dumps(line(1)) + "\n", encoding="utf-8")
        monkeypatch.setattr(report.atomic, "write_bytes", refuse)
    assert write_report(run, tiny()) is None
    why = "no space left on device" if trouble == "full" else "no such file or directory"
    assert capsys.readouterr().err == f"{run}: no report: {why}\n"


def test_a_run_without_a_measured_step_has_no_page(tiny: Callable[..., TrainConfig], tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    assert write_report(tmp_path, tiny()) is None


def test_a_smoothed_curve_keeps_constants_and_straight_lines() -> None:
    assert plots.smooth([]) == []
    assert plots.smooth([2.5]) == [2.5]
    straight = [float(n) for n in range(300)]
    assert plots.smooth(straight) == pytest.approx(straight)
    assert plots.recent([5.0] * 100) == 5.0
    assert plots.recent([]) is None


def test_long_curves_are_thinned_to_what_a_screen_shows() -> None:
    values = [float(n) for n in range(100_000)]
    thinned = plots.thin(values)
    assert len(thinned) <= plots.MOST_POINTS + 1
    assert (thinned[0], thinned[-1]) == (0.0, 99_999.0)
    assert plots.thin([1.0]) == [1.0] and plots.thin([]) == []


@pytest.mark.parametrize(
    "lines",
    [[line(1)], [line(1, grad_norm=0.0)], [line(1, **{"train/loss": None})], [line(n, tokens=0) for n in (1, 2, 3)]],
    ids=["one step", "no gradient", "no loss", "no tokens"],
)
def test_hardly_anything_can_be_drawn_too(tiny: Callable[..., TrainConfig], lines: list[dict[str, Any]]) -> None:
    for picture in (
        plots.draw_loss(lines),
        plots.draw_speed(lines),
        plots.draw_norm(lines, 1.0),
        plots.draw_rate(lines),
    ):
        ET.fromstring(picture)
    assert plots.draw_runs([("a$b", lines), ("other", [])]).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (2_500_000, "2.5M"), (3e11, "300B"), (0.25, "0.25")]
)
def test_short_numbers(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65, "1:05"), (7384, "2:03:04"), (59.7, "1:00")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
