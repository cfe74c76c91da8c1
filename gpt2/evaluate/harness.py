"""Tasks for lm-evaluation-harness over files in a folder: YAML that it reads with `--include_path`, without a network.

    python -m gpt2.evaluate.harness DATA FOLDER
    lm_eval --include_path FOLDER --tasks local_piqa,local_lambada --model ...

Metrics are those of its own tasks of these names. So are prompts, but for TriviaQA and arithmetic, whose files hold
their prompts ready made: those are taken as they are.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from gpt2.atomic import write_text
from gpt2.errors import UserError

CHOICE = """\
output_type: multiple_choice
doc_to_target: gold
doc_to_choice: choices
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
EXACT = """\
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{completion}}"
metric_list: [{metric: acc}]
"""
LAMBADA = """\
output_type: loglikelihood
doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
doc_to_target: "{{' ' + text.split(' ')[-1]}}"
metric_list: [{metric: perplexity}, {metric: acc}]
"""
WIKITEXT = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
"""
# one sentence behind two contexts: the harness's way of partial scoring, where doc_to_text is the right one's place
WINOGRANDE = """\
output_type: multiple_choice
doc_to_text: gold
doc_to_target: "{{continuation}}"
doc_to_choice: context_options
metric_list: [{metric: acc}]
"""
TRIVIAQA = """\
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{aliases}}"
generation_kwargs: {until: ["\\n", ".", ","], do_sample: false, temperature: 0.0, max_gen_toks: 24}
filter_list: [{name: remove_whitespace, filter: [{function: remove_whitespace}, {function: take_first}]}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true,
  ignore_punctuation: true}]
"""
TASKS = {  # name: how its file begins, the task
    "local_lambada": ("lambada", LAMBADA),
    "local_wikitext": ("wikitext", WIKITEXT),
    "local_piqa": ("piqa", 'doc_to_text: "{{query}}Answer:"\n' + CHOICE),
    "local_copa": ("copa", "doc_to_text: query\n" + CHOICE),
    "local_winogrande": ("winogrande", WINOGRANDE),
    "local_arc_easy": ("arc_easy", 'doc_to_text: "{{query}}\\nAnswer:"\n' + CHOICE),
    "local_triviaqa": ("triviaqa", TRIVIAQA),
    "local_arithmetic": ("two_digit_addition", EXACT),
}
TITLE = re.compile(r"^ = (?!=).* = $", re.MULTILINE)  # of an article; those of its sections have more signs


def write_tasks(data: Path, folder: Path) -> list[str]:
    """Write a YAML for each task whose file is in `data`; their names. UserError if none is."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for name, (beginning, task) in TASKS.items():
        files = sorted(path for path in data.glob(f"{beginning}*") if path.suffix in (".jsonl", ".txt"))
        if not files:
            continue
        file = files[0] if files[0].suffix == ".jsonl" else _pages(files[0], folder / f"{name}.jsonl")
        source = json.dumps({"data_files": {"test": str(file.resolve())}})
        head = f"task: {name}\ndataset_path: json\ndataset_kwargs: {source}\ntest_split: test\n"
        write_text(folder / f"{name}.yaml", head + task)
        names.append(name)
    if not names:
        raise UserError(
            f"{data}: holds no file of these tasks: {', '.join(f'{start}*' for start, _ in TASKS.values())}"
        )
    return names


def _pages(text: Path, target: Path) -> Path:
    """WikiText's articles, one a line of JSON."""
    whole = text.read_text(encoding="utf-8")
    starts = [match.start() for match in TITLE.finditer(whole)] or [0]
    pages = [whole[start:end] for start, end in zip(starts, [*starts[1:], len(whole)], strict=True)]
    write_text(target, "".join(json.dumps({"page": page}) + "\n" for page in pages))
    return target


if __name__ == "__main__":
    print("\n".join(write_tasks(Path(sys.argv[1]), Path(sys.argv[2]))))
