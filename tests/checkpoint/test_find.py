"""From what is typed after --model to a folder, with no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.checkpoint import find
from gpt2.errors import UserError


def folder(path: Path, age: float = 0.0) -> Path:
    """A folder that looks like a model, `age` seconds old."""
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}", encoding="utf-8")
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_a_model_folder_is_itself(tmp_path: Path) -> None:
    assert find.find_folder(folder(tmp_path / "m")) == tmp_path / "m"
    assert find.find_folder(str(tmp_path / "m")) == tmp_path / "m"


def test_a_run_means_its_best_and_else_its_last_step(tmp_path: Path) -> None:
    one, two = folder(tmp_path / "step_1"), folder(tmp_path / "step_2")
    find.point(tmp_path / "last", two)
    assert find.find_folder(tmp_path) == two
    find.point(tmp_path / "best", one)
    assert find.find_folder(tmp_path) == one


def test_a_pointer_can_be_moved_and_may_be_a_file_where_links_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = folder(tmp_path / "step_1"), folder(tmp_path / "step_2")
    find.point(tmp_path / "last", one)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    find.point(tmp_path / "last", two)
    assert not (tmp_path / "last").is_symlink()
    assert find.find_folder(tmp_path) == two
    assert not list(tmp_path.glob(".*"))


def test_a_folder_where_a_copy_has_followed_the_link_is_kept_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = folder(tmp_path / "step_1"), folder(tmp_path / "step_2")
    folder(tmp_path / "last")
    folder(tmp_path / "last.copy1")
    find.point(tmp_path / "last", two)
    assert find.follow(tmp_path / "last") == two and find.marked(tmp_path / "last.copy2")
    assert "kept as last.copy2" in capsys.readouterr().err
    find.point(tmp_path / "last", one)
    assert find.follow(tmp_path / "last") == one and not capsys.readouterr().err


def test_a_best_whose_step_is_gone_falls_back_to_last(tmp_path: Path) -> None:
    find.point(tmp_path / "best", tmp_path / "step_1")
    find.point(tmp_path / "last", folder(tmp_path / "step_2"))
    assert find.find_folder(tmp_path) == tmp_path / "step_2"


def test_what_is_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for name, message in {
        tmp_path: "neither a model folder .* nor a run",
        tmp_path / "file": "a file; a model is a folder",
        tmp_path / "not there": "no such folder",
        "./runs/my": "no such folder",
        "gpt3": "no such folder, and not a Hugging Face id .*gpt2-xl",
    }.items():
        with pytest.raises(UserError, match=message):
            find.find_folder(name)


def test_short_ids_mean_openais_and_bring_the_old_weights_only_where_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def download(hub_id: str, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find.find_folder("gpt2-medium") == tmp_path
    assert asked == [
        ("openai-community/gpt2-medium", find.PATTERNS),
        ("openai-community/gpt2-medium", find.OLD_WEIGHTS),
    ]
    (tmp_path / "model.safetensors").touch()
    asked.clear()
    find.find_folder("someone/theirs")
    assert asked == [("someone/theirs", find.PATTERNS)]


def test_a_short_id_is_an_id_beside_a_folder_of_that_name_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find, "fetch", Path)
    (tmp_path / "gpt2").mkdir()  # as in a clone of this repository
    assert find.find_folder("gpt2") == Path("openai-community/gpt2")
    folder(tmp_path / "gpt2-xl")
    assert find.find_folder("gpt2-xl") == Path("gpt2-xl")


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "someone/theirs"])
def test_offline_an_id_says_where_to_put_which_files(tmp_path: Path, name: str) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)}
    code = f"import gpt2\ntry: gpt2.load({name!r})\nexcept gpt2.UserError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("openai-community/gpt2" if name.startswith("gpt2") else name)
    for word in ("not in the Hugging Face cache", "config.json", "model.safetensors", "vocab.json", "merges.txt"):
        assert word in done.stdout
    assert done.stdout.count("\n") == 1


def test_the_newest_run_here_is_the_default_and_gpt2_model_overrides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GPT2_MODEL", raising=False)
    old, new = folder(tmp_path / "runs/a/step_9", age=50), folder(tmp_path / "runs/b/step_3", age=10)
    find.point(tmp_path / "runs/a/last", old)
    find.point(tmp_path / "runs/b/last", new)
    assert find.newest_model(tmp_path) == new
    best = folder(tmp_path / "runs/b/step_1", age=90)
    find.point(tmp_path / "runs/b/best", best)
    assert find.newest_model(tmp_path) == best
    monkeypatch.setenv("GPT2_MODEL", str(tmp_path / "runs/a"))
    assert find.newest_model(tmp_path) == old


def test_with_no_model_anywhere_the_ways_to_one_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.delenv("GPT2_MODEL", raising=False)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    with pytest.raises(UserError, match="no model here yet: make one with `gpt2 demo`, or name one with --model"):
        find.newest_model(tmp_path)


def test_without_a_run_gpt2_from_the_cache_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.delenv("GPT2_MODEL", raising=False)
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_: str(tmp_path / "snap" / "model.safetensors")
    )
    assert find.newest_model(tmp_path) == tmp_path / "snap"
