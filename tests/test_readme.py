"""What the documentation shows works: every command and snippet of the README and every Examples block is run.

Each block runs in a folder of its own, in order, in a few training steps (GPT2_SHORT), with a tiny stand-in for
OpenAI's GPT-2 in Hugging Face's cache. A line marked `# needs network` is parsed only.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt2.checkpoint import find
from gpt2.cli.main import COMMANDS, cli, main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NETWORK = "# needs network"
BY_HAND = (". .venv/bin/activate",)
pytestmark = pytest.mark.skipif(os.name == "nt", reason="the examples are written for a POSIX shell")


def fenced(language: str, page: str = README) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for kind, text in blocks if kind == language]


def lines_of(block: str) -> list[str]:
    """Its commands, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", block)
    return [line.strip() for line in joined.splitlines() if line.strip()]


def examples(name: str) -> list[str]:
    """The lines below "Examples:" in a command's help; those of the group for an empty name."""
    command = importlib.import_module(COMMANDS[name][0]).command if name else cli
    below = (command.help or "").split("Examples:\n", 1)[1]
    return lines_of(below.split("\n\n")[0])


def arguments(line: str) -> list[str] | None:
    """The words behind `gpt2` if the line is that command alone, without pipes and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split = True
    words = list(lexer)
    plain = words[:1] in (["gpt2"], [".venv/bin/gpt2"]) and not any(set(word) <= set("|<>;&") for word in words)
    return words[1:] if plain else None


def shown_elsewhere() -> list[tuple[str, str]]:
    """The commands of the other pages and of the configs' headers: where, and the line."""
    blocks = [(page, block) for page in (ROOT / "docs").glob("*.md") for block in fenced("sh", page.read_text("utf-8"))]
    for config in (ROOT / "configs").glob("*.toml"):
        header = re.findall(r"^#   (.*\n)", config.read_text(encoding="utf-8"), re.MULTILINE)
        assert header, f"{config.name}: its header shows no command"
        blocks.append((config, "".join(header)))
    lines = {(path.name, line) for path, block in blocks for line in lines_of(block)}
    return sorted((name, line) for name, line in lines if line.startswith(("gpt2 ", "torchrun ")))


def only_parse(words: list[str]) -> None:
    ctx = cli.make_context("gpt2", words.copy())
    name, command, rest = cli.resolve_command(ctx, words)
    assert command is not None
    command.make_context(name, rest.copy(), parent=ctx)
    if name in ("train", "finetune"):
        from gpt2.config import parse_flags
        from gpt2.train.config import TrainConfig
        from gpt2.train.tune_config import TuneConfig

        config = next((word for word in rest if word.endswith(".toml")), None)
        assert config is None or (ROOT / config).is_file()
        flags = [word for word in rest if word != config]
        if flags[:1] == ["--resume"]:  # a run of its own settings
            flags = flags[2:]
        parse_flags(TrainConfig if name == "train" else TuneConfig, flags)


def run(line: str) -> None:
    """Run one line of documentation in the current folder and expect exit code 0; of four processes only two."""
    line = line.replace("--nproc-per-node 4", "--nproc-per-node 2")  # the machine that tests may have no more cores
    words = arguments(line)
    if NETWORK in line or "--tokenizer gpt2" in line:  # the stand-in's vocabulary is its own
        assert words is not None, f"cannot parse: {line}"
        only_parse(words)
    elif line.startswith("make "):
        subprocess.run(["make", "--dry-run", *shlex.split(line, comments=True)[1:]], cwd=ROOT, check=True)
    elif words is not None:
        assert main(words) == 0, line
    elif line not in BY_HAND and not line.startswith(BY_HAND):
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        subprocess.run(["bash", "-c", line], env=os.environ | {"PATH": path}, stdin=subprocess.DEVNULL, check=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that examples name: texts, tables, shards, a run; and GPT-2's stand-in in the cache."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GPT2_SHORT", "1")
        write_texts(folder)
        assert main(["prepare", "my.txt", "--tokenizer", "train:512", "--out", "data"]) == 0
        assert main(["train", "--data", "data", "--out", "runs/my", "--preset", "tiny"]) == 0
    write_lora(folder / "runs" / "my-adapter", folder / "runs" / "my" / "best")
    snapshot = Path(os.environ["HF_HUB_CACHE"]) / "models--openai-community--gpt2" / "snapshots" / "0"
    shutil.copytree(folder / "runs" / "my" / "best", snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0")
    yield folder
    shutil.rmtree(snapshot.parents[1])


def write_lora(folder: Path, base: Path) -> None:
    """An adapter over runs/my, as fine-tuning begins one."""
    from gpt2.checkpoint.adapters import write_adapter
    from gpt2.checkpoint.hf_config import read_config
    from gpt2.checkpoint.native import load_module
    from gpt2.model.lora import LoRAConfig, apply_lora, lora_parameters

    module = load_module(base, read_config(base))
    apply_lora(module, LoRAConfig(rank=2))
    write_adapter(folder, LoRAConfig(rank=2), lora_parameters(module), "runs/my")


def write_texts(folder: Path) -> None:
    text = "".join(f"The {n}th ship went out to sea, and {n * n % 97} men sang of it.\n" for n in range(3000))
    for name in ("my.txt", "shakespeare.txt", "your.txt", "held-out.txt"):
        (folder / name).write_text(text)
    (folder / "shots.jsonl").write_text('{"input": "sea", "output": "mer"}\n{"input": "cheese", "output": "fromage"}\n')
    pairs = [{"prompt": f"The {n}th ship", "completion": f"went out {n} times."} for n in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "texts.csv").write_text("review,stars\n" + "".join(f"Ship {n},{n % 2 + 1}\n" for n in range(40)))
    write_benchmarks(folder)
    (folder / "prompts.jsonl").write_text('{"prompt": "The sea"}\n{"prompt": "The ship", "max_new_tokens": 5}\n')
    rows = [{"text": text[n : n + 999], "body": text[n + 1 : n + 999]} for n in range(0, 99_000, 999)]
    for place in ("essays", "corpus", "archive/1999"):
        (folder / place).mkdir(parents=True)
        for n, row in enumerate(rows[:20]):
            (folder / place / f"{n}.txt").write_text(row["text"])
    (folder / "archive/1999/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (folder / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "body"], *(row.values() for row in rows)])
    (folder / "dump.txt.gz").write_bytes(gzip.compress(text.encode()))
    shutil.copytree(ROOT / "configs", folder / "configs")


def write_benchmarks(folder: Path) -> None:
    """A little of what `gpt2 evaluate` reads, and a suite."""
    (folder / "benchmarks").mkdir()
    item = {"query": "The ship went out, so", "choices": ["men sang.", "it sank."], "gold": 0}
    (folder / "benchmarks" / "copa.jsonl").write_text(f"{json.dumps(item)}\n" * 3)
    (folder / "my-suite.toml").write_text('[[task]]\nname = "book"\ntext = "held-out.txt"\n')


@pytest.fixture
def scratch(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world to run in; `stdlib:` is a small part of it there, and nobody types anything."""
    folder = tmp_path / "here"
    shutil.copytree(world, folder, symlinks=True)
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GPT2_SHORT", "1")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"The sea\n")))
    parts = [path for module in (json, csv, re) for path in Path(str(module.__file__)).parent.glob("*.py")][:40]
    monkeypatch.setattr("gpt2.data.sources.stdlib_files", lambda: parts)
    return folder


@pytest.mark.parametrize("name", ["", *COMMANDS], ids=lambda name: name or "gpt2")
def test_examples_of_help_run(name: str, scratch: Path) -> None:
    for line in examples(name):
        out = re.search(r"--out (\S+)", line)
        if out:  # two examples may name the same folder; each is for itself
            shutil.rmtree(scratch / out[1], ignore_errors=True)
        if "--data data" in line and not (scratch / "data").exists():
            main(["prepare", "my.txt", "--out", "data"])
        run(line)


@pytest.mark.parametrize(("page", "line"), shown_elsewhere(), ids=range(len(shown_elsewhere())))
def test_commands_of_other_pages_are_commands(page: str, line: str) -> None:
    words = arguments(re.sub(r"^torchrun .*-m gpt2 ", "gpt2 ", line))
    assert words, f"{page}: a command alone"
    only_parse(words)


def test_readme_commands_and_snippets_run_in_order(scratch: Path) -> None:
    for leftover in ("data", "runs"):
        shutil.rmtree(scratch / leftover)
    assert main(["demo"]) == 0  # what `make demo` runs
    for line in (line for block in fenced("sh") for line in lines_of(block)):
        run(line)
    for snippet in fenced("python"):
        exec(compile(snippet, "README.md", "exec"), {})


def test_the_readme_s_first_prompt_goes_to_the_demo_s_model(
    scratch: Path,
) -> None:
    (scratch / "gpt2-demo").mkdir()
    shutil.move(scratch / "runs" / "my", scratch / "gpt2-demo" / "run")
    shutil.rmtree(scratch / "runs")
    assert find.newest_model(scratch).is_relative_to(scratch / "gpt2-demo" / "run")


def test_readme_map_is_true() -> None:
    rows = fenced("")[0].splitlines()
    inside = {row.split()[0].rstrip("/") for row in rows if row.startswith("  ")}
    top = {row.split()[0] for row in rows if not row.startswith(" ")}
    there = {path.name for path in (ROOT / "gpt2").iterdir() if path.name[0] != "_" and path.suffix in ("", ".py")}
    assert inside == there | {"__init__.py"}
    assert all((ROOT / name).is_dir() for name in top)
    assert top >= {f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and tracked(path)}


def tracked(path: Path) -> bool:
    """Whether a top folder is part of the project, not a build's or a tool's."""
    listed = subprocess.run(["git", "ls-files", path.name], cwd=ROOT, capture_output=True, text=True).stdout
    return bool(listed) and not path.name.startswith(".")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('gpt2 generate "a | b" # note', ["generate", "a | b"]),
        ("gpt2 doctor --json > x.json", None),
        ("cat a | gpt2 generate", None),
        (r'gpt2 generate --stop "\n" "x"', ["generate", "--stop", r"\n", "x"]),
    ],
)
def test_a_line_is_split_as_a_shell_would(line: str, words: list[str] | None) -> None:
    assert arguments(line) == words


def test_an_example_that_fails_fails(gpt2: Callable[..., Any]) -> None:
    with pytest.raises(AssertionError):
        run("gpt2 train --no-such-setting 1")
    with pytest.raises(subprocess.CalledProcessError):
        run("false | false")
