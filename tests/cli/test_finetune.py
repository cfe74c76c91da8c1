"""`gpt2 finetune` reads its command line as the other commands read theirs."""

from __future__ import annotations

from gpt2.cli.finetune import as_typed
from gpt2.train.tune_config import compose


def test_a_template_has_the_line_ends_that_the_verbs_read_in_it() -> None:
    typed = ("--template", r"Q: {prompt}\nA:")
    assert as_typed(compose(None, typed), typed).template == "Q: {prompt}\nA:"
    assert as_typed(compose(template="Q\n\\n"), ()).template == "Q\n\\n"  # a file's or a program's is what it is
