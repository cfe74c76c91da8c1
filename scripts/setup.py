"""Make .venv and install gpt2 into it: `python3 scripts/setup.py [EXTRA]`, as `make setup` and `make demo` do.

Standard library only. torch comes first and alone, because which of its builds fits depends on the machine: on
Linux the registry's own build brings gigabytes of GPU packages that a machine without an NVIDIA driver cannot use.
"""

from __future__ import annotations  # an old Python has to get as far as being told so

import os
import platform
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
CONSTRAINTS = ROOT / "constraints.txt"
PROCESSOR_INDEX = "https://download.pytorch.org/whl/cpu"


def main() -> None:
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        fail(
            f"needs Python 3.10 to 3.13; {sys.executable} is {platform.python_version()}: make PYTHON=python3.12 setup"
        )
    extra = sys.argv[1] if len(sys.argv) > 1 else ""
    make_venv()
    install_torch()
    say(f"gpt2 with extra '{extra}' and what it needs ..." if extra else "gpt2 and what it needs ...")
    if not pip("--editable", f"{ROOT}[{extra}]" if extra else str(ROOT)):
        fail("pip failed; what it said stands above")
    (VENV / f".{extra or 'core'}").touch()  # the Makefile's stamp
    say(f"done: {PYTHON.with_name('gpt2')}")


def make_venv() -> None:
    """A fresh .venv, unless the one that is there works and has this interpreter's version."""
    if PYTHON.exists() and ask("import sys; print(sys.version_info[:2])") == str(sys.version_info[:2]):
        return
    say(f".venv with Python {platform.python_version()} ...")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)]).returncode:
        fail("python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv")


def install_torch() -> None:
    """The pinned torch, of the build that fits this machine; says which it took."""
    pin = re.search(r"^torch==([\w.]+)", CONSTRAINTS.read_text(encoding="utf-8"), re.MULTILINE)
    version = pin.group(1) if pin else fail("constraints.txt does not pin torch")
    if torch_version().partition("+")[0] == version:
        return
    for source, options in torch_sources():
        say(f"torch {version}, {source} ...")
        # Without its dependencies: an index that holds torch need not hold them, and the next call brings them.
        if pip("--no-deps", *options, f"torch=={version}", quietly="--no-index" in options):
            say(f"took torch {torch_version()}, {source}")
            return
    fail(f"no torch {version} to be had; name an index that has it: make TORCH_INDEX=URL setup")


def torch_sources() -> list[tuple[str, list[str]]]:
    """Where to look for torch, best first, each with the words that say why."""
    registry: tuple[str, list[str]] = ("the registry's own build", [])
    if os.environ.get("TORCH_INDEX"):
        return [("from TORCH_INDEX", ["--index-url", os.environ["TORCH_INDEX"]])]
    if sys.platform != "linux":
        return [registry]
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        return [("the registry's own build (NVIDIA driver found)", [])]
    why = "(no NVIDIA driver found)"
    sources = []
    if local_wheels():
        sources.append((f"from pip's local wheel folder {why}", ["--no-index"]))
    if reachable(f"{PROCESSOR_INDEX}/torch/"):
        sources.append((f"PyTorch's processor build {why}", ["--index-url", PROCESSOR_INDEX]))
    return [*sources, registry]


def local_wheels() -> bool:
    """Whether pip is set up with folders of wheels (find-links) that hold any torch; pip itself checks the fit."""
    places = os.environ.get("PIP_FIND_LINKS", "").split()
    for key in ("global.find-links", "install.find-links"):
        places += run("-m", "pip", "config", "get", key).split()
    folders = [Path(place.removeprefix("file://")) for place in places]
    return any(list(folder.glob("torch-*.whl")) for folder in folders if folder.is_dir())


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=4):
            return True
    except (OSError, ValueError):
        return False


def pip(*arguments: str, quietly: bool = False) -> bool:
    """`pip install` with the pins; only errors are shown (-qq), none when the caller has another way."""
    options = ["-qq", "--no-input", "--disable-pip-version-check", "--constraint", str(CONSTRAINTS)]
    command = [str(PYTHON), "-m", "pip", "install", *options, *arguments]
    return subprocess.run(command, stderr=subprocess.DEVNULL if quietly else None).returncode == 0


def torch_version() -> str:
    return ask("from importlib.metadata import version; print(version('torch'))")


def ask(code: str) -> str:
    return run("-c", code)


def run(*arguments: str) -> str:
    """What the environment's Python prints, or nothing if it fails."""
    done = subprocess.run([str(PYTHON), *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def say(message: str) -> None:
    print(f"setup: {message}", file=sys.stderr, flush=True)


def fail(message: str) -> NoReturn:
    sys.exit(f"setup: error: {message}")


if __name__ == "__main__":
    main()
