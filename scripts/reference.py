"""Write docs/reference/cli.md, every command's help, from the commands themselves; `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gpt2 import atomic
from gpt2.cli.main import COMMANDS, cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "cli.md"


def main() -> None:
    text = page()
    if "--check" not in sys.argv:
        atomic.write_text(PAGE, text)
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        sys.exit(f"{PAGE} is not what the commands say of themselves now; run: make docs")


def page() -> str:
    """The group's help, then each command's, as fenced text of one width on every terminal."""
    parts = ["# The command line\n\nWritten by `make docs` from the commands themselves; do not edit.\n"]
    group = click.Context(cli, info_name="gpt2", terminal_width=100, color=False)
    parts.append(section("gpt2", cli.get_help(group)))
    for name in COMMANDS:
        command = cli.get_command(group, name)
        assert command is not None
        context = click.Context(command, info_name=name, parent=group, terminal_width=100, color=False)
        parts.append(section(f"gpt2 {name}", command.get_help(context)))
    return "\n".join(parts)


def section(title: str, text: str) -> str:
    return f"## {title}\n\n```text\n{text.rstrip()}\n```\n"


if __name__ == "__main__":
    main()
