"""What every test shares: no network, fixed randomness, the real assets where they are, and the command `gpt2`."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "MPLBACKEND": "Agg"}
os.environ.update(OFFLINE)  # before anything imports huggingface_hub, which reads it once
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: models this small only lose by a second thread
os.environ["HF_HUB_CACHE"] = tempfile.mkdtemp(prefix="gpt2-tests-")  # empty, whatever the user has fetched
atexit.register(shutil.rmtree, os.environ["HF_HUB_CACHE"], ignore_errors=True)
for name in ("GPT2_DEBUG", "GPT2_MODEL", "GPT2_SHORT", "GPT2_TOKENIZER"):
    os.environ.pop(name, None)

try:
    import hypothesis
except ImportError:  # only the tests that use it need it
    pass
else:
    hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
    hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real test data (GPT2_ASSETS, else ../shared/assets); the test is skipped where it is absent."""
    folder = Path(os.environ.get("GPT2_ASSETS", ROOT.parent / "shared" / "assets"))
    if not folder.is_dir():
        pytest.skip(f"needs the test data, which is not at {folder}; set GPT2_ASSETS")
    return folder


@dataclass(frozen=True)
class Ran:
    """How a command line ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def gpt2(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`gpt2("generate", "--model", folder)`: run the command in this process; see Ran."""
    from gpt2.cli.main import main

    def run(*words: object) -> Ran:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return run
