"""Text to shards: the published counts, nothing lost, held out fairly, and the same bytes after any interruption."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpt2.data import prepare as module
from gpt2.data.parallel import Workers
from gpt2.data.prepare import prepare
from gpt2.data.shards import open_split
from gpt2.data.splitting import Part
from gpt2.data.vocabulary import auto_vocab_size, sample
from gpt2.errors import UserError
from gpt2.tokenizer.files import load_tokenizer

DRIVER = """
import sys
import time
from gpt2.data import encode, parallel
from gpt2.data.prepare import prepare
parallel.BATCH_CHARS, encode.JOURNAL_BATCHES = 500, 3
inner = encode._encode
def slowed(*arguments, **settings):
    time.sleep(0.004)
    return inner(*arguments, **settings)
encode._encode = slowed
print('begun', flush=True)
prepare([sys.argv[1]], sys.argv[2], tokenizer=sys.argv[3], format="llmc", shard_tokens=3000, workers=2)
"""


def story(seed: int) -> str:
    draw = random.Random(seed)
    words = ["the", "ship", "sailed", "über", "a", "sea", "of", "stars", "and", "nobody", "knew", "why", "it's", "42"]
    return f"Story {seed}. " + " ".join(draw.choices(words, k=draw.randint(5, 120)))


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(story(n) for n in range(300)), encoding="utf-8")
    return path


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def texts(folder: Path, side: str) -> list[str]:
    """The documents of a side, decoded."""
    split = open_split(folder, side)
    text = load_tokenizer(folder / "tokenizer").decode(split.tokens(0, len(split)))
    assert text.endswith("<|endoftext|>")
    return text.split("<|endoftext|>")[:-1]


def test_nanogpts_character_split_of_tinyshakespeare(assets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = assets / "text" / "tinyshakespeare.txt"
    meta = prepare([source], tmp_path / "d", tokenizer="char")
    assert (meta.train.tokens, meta.val.tokens, meta.vocab_size, meta.eot_id) == (1_003_854, 111_540, 65, None)
    assert "--split position --val-fraction 0.1 --no-eot" in capsys.readouterr().err
    text = source.read_text()
    ids = {symbol: number for number, symbol in enumerate(sorted(set(text)))}
    expected = np.array([ids[symbol] for symbol in text], "<u2")
    assert (tmp_path / "d" / "train.bin").read_bytes() == expected[:1_003_854].tobytes()
    assert (tmp_path / "d" / "val.bin").read_bytes() == expected[1_003_854:].tobytes()
    assert meta.train.preceding is None and meta.val.preceding == expected[1_003_853]
    assert (meta.train.text_bytes, meta.val.text_bytes, meta.bytes_per_token) == (1_003_854, 111_540, 1.0)


def test_nanogpts_bpe_split_of_tinyshakespeare_whatever_the_pieces(assets: Path, tmp_path: Path):
    source, vocabulary = assets / "text" / "tinyshakespeare.txt", str(assets / "gpt2-vocab")
    meta = prepare([source], tmp_path / "d", tokenizer=vocabulary)
    assert (meta.train.tokens, meta.val.tokens) == (301_966, 36_059)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2.data.readers.PIECE_CHARS", 1000)
        patch.setattr("gpt2.data.readers.BLOCK_BYTES", 777)
        patch.setattr("gpt2.data.parallel.BATCH_CHARS", 5000)
        prepare([source], tmp_path / "small", tokenizer=vocabulary, workers=3)
    assert shards(tmp_path / "small") == shards(tmp_path / "d")


def test_documents_are_held_out_whole_none_lost_none_twice(stories: Path, tmp_path: Path):
    meta = prepare([stories], tmp_path / "d", tokenizer="byte", val_fraction=0.2)
    train, val = texts(tmp_path / "d", "train"), texts(tmp_path / "d", "val")
    assert sorted(train + val) == sorted(story(n) for n in range(300))
    assert (meta.train.documents, meta.val.documents) == (len(train), len(val))
    assert 30 <= len(val) <= 90 and meta.split == "document"
    assert meta.val.text_bytes == sum(len(text.encode()) for text in val)
    assert meta.val.preceding == meta.train.preceding == meta.eot_id == 256
    assert meta.bytes_per_token == (meta.train.text_bytes + meta.val.text_bytes) / (meta.train.tokens + meta.val.tokens)


def test_the_split_does_not_depend_on_order_or_form_but_on_the_seed(stories: Path, tmp_path: Path):
    import json

    rows = [story(n) for n in reversed(range(300))]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in rows))
    for name, source, seed in (("a", stories, 0), ("b", tmp_path / "rows.jsonl", 0), ("c", stories, 1)):
        prepare([source], tmp_path / name, tokenizer="byte", seed=seed)
    a, b, c = (set(texts(tmp_path / name, "val")) for name in "abc")
    assert a == b != c


def test_a_files_near_copy_lies_on_its_side(tmp_path: Path):
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(40):
        text = " ".join(story(100 * n + k) for k in range(6))
        (folder / f"{n}.txt").write_text(text)
        (folder / f"{n}-copy.txt").write_text("A licence.\n" + text)
    prepare([folder], tmp_path / "d", tokenizer="byte", val_fraction=0.3)
    val = texts(tmp_path / "d", "val")
    assert 2 <= len(val) < 50
    assert sorted(text.removeprefix("A licence.\n") for text in val)[::2] == sorted(t for t in val if t[:1] == "S")


def test_two_documents_give_one_to_each_side(tmp_path: Path):
    for n in (1, 2):
        (tmp_path / f"{n}.txt").write_text(story(n))
    meta = prepare([tmp_path / "1.txt", tmp_path / "2.txt"], tmp_path / "d", tokenizer="byte")
    assert (meta.train.documents, meta.val.documents) == (1, 1)


def test_a_position_split_of_several_documents_keeps_their_ends(stories: Path, tmp_path: Path):
    meta = prepare([stories], tmp_path / "d", tokenizer="byte", split="position", val_fraction=0.25)
    split = [open_split(tmp_path / "d", side) for side in ("train", "val")]
    ids = np.concatenate([each.tokens(0, len(each)) for each in split])
    assert (ids == 256).sum() == 300 and meta.train.documents + meta.val.documents == 300
    assert meta.val.preceding == ids[len(split[0]) - 1] and meta.train.preceding == 256


def test_eot_and_no_eot_are_followed(stories: Path, tmp_path: Path):
    assert prepare([stories], tmp_path / "a", tokenizer="byte", eot=False).eot_id is None
    split = open_split(tmp_path / "a", "train")
    assert 256 not in split.tokens(0, len(split)) and split.preceding is None
    (tmp_path / "one.txt").write_text(story(1))
    meta = prepare([tmp_path / "one.txt"], tmp_path / "b", tokenizer="byte", eot=True)
    assert meta.eot_id == 256 and open_split(tmp_path / "b", "val").tokens(0, meta.val.tokens)[-1] == 256


def test_the_tokenizer_is_trained_on_the_training_side_alone(stories: Path, tmp_path: Path):
    prepare([stories], tmp_path / "byte", tokenizer="byte", val_fraction=0.5)
    from gpt2.tokenizer.train import train_bpe

    meta = prepare([stories], tmp_path / "bpe", tokenizer="train:300", val_fraction=0.5)
    ours = train_bpe(texts(tmp_path / "byte", "train"), 300)
    assert meta.tokenizer_hash == ours.hash == load_tokenizer(tmp_path / "bpe" / "tokenizer").hash
    assert ours.hash != train_bpe([story(n) for n in range(300)], 300).hash
    assert meta.tokenizer == "train:300" and meta.vocab_size == 300


def test_the_automatic_vocabulary_grows_with_the_text():
    sizes = [auto_vocab_size(size) for size in (1, 10**6, 2 * 10**6, 10**7, 2 * 10**7, 10**8, 10**10)]
    assert sizes == [512, 512, 1024, 4096, 8192, 32768, 32768]


def test_a_sample_is_bounded_and_even():
    parts = [Part(f"{n:>10}", "val" if n % 10 == 0 else "train", True) for n in range(1000)]
    taken = [int(text) for text in sample(parts, 0.1)]
    assert len(taken) == pytest.approx(90, abs=1) and max(np.diff(taken)) <= 12
    assert len(list(sample(parts, 1.0))) == 900


def test_killed_at_any_moments_and_run_again_the_shards_are_the_same(stories: Path, tmp_path: Path):
    def begin(out: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", DRIVER, str(stories), str(tmp_path / out), "train:300"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"begun\n"
        return child

    child, begun = begin("whole"), time.monotonic()
    assert child.wait() == 0
    duration, delay = time.monotonic() - begun, random.Random(0)
    for _ in range(8):
        child = begin("d")
        time.sleep(delay.uniform(0, 0.7 * duration))
        child.send_signal(signal.SIGKILL)
        child.wait()
    said = begin("d").communicate()[1].decode()
    assert "going on where an interrupted run stopped" in said or "nothing to do" in said
    assert shards(tmp_path / "d") == shards(tmp_path / "whole") and len(shards(tmp_path / "d")) > 4
    assert open_split(tmp_path / "d", "train").meta == open_split(tmp_path / "whole", "train").meta
    assert not (tmp_path / "d" / ".prepare").exists()


@pytest.mark.parametrize("stop_at", range(0, 21, 4))
def test_stopped_while_results_are_moved_into_place(
    stories: Path, tmp_path: Path, stop_at: int, monkeypatch: pytest.MonkeyPatch
):
    prepare([stories], tmp_path / "whole", tokenizer="byte", shard_tokens=5000)
    out = tmp_path / "d"
    prepare([stories], out, tokenizer="byte", shard_tokens=2000)  # an earlier dataset, with more files
    rename, calls = Path.rename, iter(range(100))

    def failing(self: Path, target: Path) -> Path:
        if self.parent == out / ".prepare" and next(calls) == stop_at:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(KeyboardInterrupt):
            prepare([stories], out, tokenizer="byte", shard_tokens=5000)
    prepare([stories], out, tokenizer="byte", shard_tokens=5000)
    assert shards(out) == shards(tmp_path / "whole")
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in (tmp_path / "whole").iterdir())


def test_done_already_it_does_nothing_and_says_so(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    first = prepare([stories], tmp_path / "d", tokenizer="byte")
    with monkeypatch.context() as patch:
        patch.setattr(module, "Job", None)
        assert prepare([stories], tmp_path / "d", tokenizer="byte", workers=1) == first
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["arguments", "sources"])
def test_an_interrupted_run_with_changed_arguments_or_sources_starts_anew(
    stories: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Workers, "map", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare([stories], tmp_path / "d", tokenizer="byte")
    if change == "sources":
        stories.write_text(stories.read_text() + " And more.")
    prepare([stories], tmp_path / "d", tokenizer="byte", seed=int(change == "arguments"))
    assert "starting anew" in capsys.readouterr().err
    prepare([stories], tmp_path / "clean", tokenizer="byte", seed=int(change == "arguments"))
    assert shards(tmp_path / "d") == shards(tmp_path / "clean")


def test_a_folder_of_somebody_else_is_not_overwritten(stories: Path, tmp_path: Path):
    out = tmp_path / "d"
    out.mkdir()
    (out / "train.bin").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"train\.bin that gpt2 prepare did not write"):
        prepare([stories], out)
    assert (out / "train.bin").read_bytes() == b"precious"


def test_a_full_disk_is_one_line_and_the_run_can_go_on(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import errno

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("gpt2.data.shards.ShardWriter.write", full)
        with pytest.raises(UserError, match="No space left on device; make room"):
            prepare([stories], tmp_path / "d", tokenizer="byte")
    prepare([stories], tmp_path / "d", tokenizer="byte")
    prepare([stories], tmp_path / "clean", tokenizer="byte")
    assert shards(tmp_path / "d") == shards(tmp_path / "clean")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"val_fraction": 1.0}, "--val-fraction 1.0: must lie between 0 and 1"),
        ({"val_fraction": 0.0}, "--val-fraction"),
        ({"split": "random"}, "--split random: unknown"),
        ({"encoding": "utf-9"}, "--encoding utf-9"),
        ({"encoding": "base64"}, "--encoding base64"),
        ({"errors": "loud"}, "--errors loud"),
        ({"format": "csv"}, "--format csv"),
        ({"workers": 0}, "--workers 0"),
        ({"shard_tokens": 0}, "--shard-tokens 0"),
        ({"text_column": "body"}, "--text-column body: none of the sources has columns"),
        ({"tokenizer": "train:100"}, "--tokenizer train:100: .* at least 257"),
        ({"tokenizer": "char", "eot": True}, "--eot: the tokenizer 'char' has no"),
    ],
)
def test_options_that_cannot_be_followed_are_refused_and_leave_nothing(
    stories: Path, tmp_path: Path, settings: dict[str, object], said: str
):
    with pytest.raises(UserError, match=said):
        prepare([stories], tmp_path / "d", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("content", ["", "  \n\n", "\n<|endoftext|>\n"])
def test_an_empty_corpus_is_refused(tmp_path: Path, content: str):
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(UserError, match=r"empty\.txt: empty, no text in it"):
        prepare([tmp_path / "empty.txt"], tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_what_cannot_be_split_says_why(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UserError, match="1 characters leave nothing for one side"):
        prepare([tmp_path / "a.txt"], tmp_path / "d", tokenizer="byte")
    with pytest.raises(UserError, match="single document; use --split position"):
        prepare([tmp_path / "a.txt"], tmp_path / "d", split="document")
    shutil.copy(tmp_path / "a.txt", tmp_path / "b.txt")
    with pytest.raises(UserError, match="near-identical"):
        prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "d", tokenizer="byte")


def test_a_lone_surrogate_in_json_is_text_like_any_other(tmp_path: Path):
    rows = ['{"text": "broken \\ud800 half"}', '{"text": "whole"}', '{"text": "third"}']
    (tmp_path / "x.jsonl").write_text("\n".join(rows))
    meta = prepare([tmp_path / "x.jsonl"], tmp_path / "d", tokenizer="byte")
    assert "broken \ufffd half" in texts(tmp_path / "d", "train") + texts(tmp_path / "d", "val")
    assert meta.train.text_bytes + meta.val.text_bytes == 25


def test_end_of_text_inside_a_document_is_text(tmp_path: Path):
    (tmp_path / "x.txt").write_text("a <|endoftext|> b " * 30)
    meta = prepare([tmp_path / "x.txt"], tmp_path / "d", tokenizer="byte", eot=True)
    split = open_split(tmp_path / "d", "train")
    assert 256 not in split.tokens(0, len(split)) and meta.train.tokens == meta.train.text_bytes
