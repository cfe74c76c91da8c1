"""Fine-tuning: from a model and a file of examples to a run folder. Builds the loop's ingredients and hands them over.

RUN/ is as pretrain.py says, but what a step_00000100/ holds is a model folder, of `--method lora` an adapter's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from gpt2.checkpoint.classifier import read_head
from gpt2.checkpoint.find import find_folder, follow
from gpt2.checkpoint.train_state import need, read_run_config
from gpt2.data.examples import Encoded
from gpt2.distributed.launch import Place, job, joined, restarted, take_place
from gpt2.errors import UserError
from gpt2.kernels.peak import device_peak
from gpt2.model.gpt import GPT
from gpt2.model.sizes import parameters
from gpt2.runtime import Runtime, say
from gpt2.tokenizer.bpe import Tokenizer
from gpt2.train.begun import begin, goes_on, refuse_a_run, rewrite
from gpt2.train.drive import Finished, drive
from gpt2.train.hooks import Log, Sample
from gpt2.train.judge import PER, Evaluate, Patience, Unjudged
from gpt2.train.label_report import LabelReport, report_labels
from gpt2.train.lessons import Lessons, identity, open_lessons
from gpt2.train.live import Live
from gpt2.train.lock import alone_in
from gpt2.train.loop import Hook, Run
from gpt2.train.metrics import numbers
from gpt2.train.pretrain import IN_8_BITS, LEAVING
from gpt2.train.report import Facts, Lines, loss_facts, speed_facts, write_report
from gpt2.train.restore import find_step, restore
from gpt2.train.save import Save
from gpt2.train.shortage import fit_noted
from gpt2.train.trackers import check_trackers, open_metrics
from gpt2.train.tune_build import build_run, fit_rows, held_out, mesh_of, resolve, writer_of
from gpt2.train.tune_config import TuneConfig, compose, what_was_chosen
from gpt2.train.words import clock

# What a resumed run may be told anew: how the same steps are laid out, and when it ends without getting better.
CHANGEABLE = (
    *("dp_replicate", "dp_shard", "tp", "micro_batch_size", "recompute", "compile", "fp8", "device"),
    *("on_outlier", "outlier_z", "patience"),
)
SAMPLES = 4  # of a run
ADAPTER_WORK = 2 / 3  # of the products: frozen matrices get no gradient of their own

Completer = Callable[[GPT, Tokenizer, "str | list[int]"], str]  # of a prompt: how it goes on
Preview = Callable[[Lessons], None]  # shows a person what is learned, before it is


@dataclass(frozen=True)
class Tuned(Finished):
    """How a fine-tuning ended, and the command that does what was learned.

    `report` says how well held-out labels are told, where that was to be learned.
    """

    report: LabelReport | None = None
    use: str = ""


def finetune(
    config: TuneConfig | None = None,
    completer: Completer | None = None,
    preview: Preview | None = None,
    quiet: bool = False,
    **changes: Any,
) -> Tuned:
    """Start a run, from a config or from settings by name: `finetune(model="gpt2", data="pairs.jsonl", out="runs/my")`.

    `completer` goes on from a held-out prompt now and then. Errors that the user can mend are UserErrors. Under
    torchrun all processes call it alike; those that it starts anew after a failure go on with the run of the first.
    """
    if config is not None and changes:
        raise UserError(f"{sorted(changes)[0]}: give a whole config or settings by name, not both")
    wanted = compose(**changes) if config is None else config
    with joined() as peers:
        if goes_on(peers, Path(wanted.out).expanduser(), wanted):
            return resume(Path(wanted.out).expanduser(), completer, quiet=quiet)
        runtime, config, lessons = peers.attempt(lambda: prepare(wanted))
        if preview is not None:
            preview(lessons)
        place = take_place(runtime, mesh_of(config, lessons, runtime.world_size))
        config = resolve(config, lessons, place)
        run = build_run(config, lessons, place)  # before there is a config.toml: a start that fails leaves no run
        out = Path(config.out)
        with alone_in(out, place.ranks):
            place.ranks.attempt(lambda: begin_from(out, config, wanted, lessons) if place.ranks.is_main else None)
            return tune_run(config, lessons, run, place, completer, quiet)


def prepare(config: TuneConfig) -> tuple[Runtime, TuneConfig, Lessons]:
    """What can be checked of a new run before anything is built."""
    if not (config.model and config.data and config.out):
        raise UserError(
            "name the model with --model, the examples with --data FILE and the run's folder with --out RUN"
        )
    out = Path(config.out).expanduser()
    refuse_a_run(out)
    check_trackers(config)
    folder = find_folder(config.model)
    local = Path(config.model).expanduser().is_dir()
    runtime = Runtime.detect(config.device, config.dtype)
    config = replace(
        config,
        model=str(folder.resolve()) if local else config.model,
        data=absolute(config.data),
        val=config.val and absolute(config.val),
        out=str(out),
        device=runtime.device,
        dtype=runtime.dtype,
    )
    lessons = open_lessons(config, folder)
    mesh_of(config, lessons, runtime.world_size)
    return runtime, config, lessons


def begin_from(out: Path, config: TuneConfig, wanted: TuneConfig, lessons: Lessons) -> None:
    """Make the folder a run. The step of another run that an adapter or preferences stand on is kept for it."""
    begin(out, config, wanted)
    if config.method == "lora" or lessons.kind == "preference":
        need(Path(config.model), out)


def absolute(path: str) -> str:
    """So that a run resumes from anywhere."""
    return str(Path(path).expanduser().resolve())


def resume(
    out: str | Path,
    completer: Completer | None = None,
    quiet: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> Tuned:
    """Go on with a run from its newest whole checkpoint, with the same bits as if it had never stopped.

    `changes` may lay the work out anew (CHANGEABLE has all names); they are the run's settings from then on.
    """
    with joined() as peers:
        runtime, config = peers.attempt(lambda: reopen(Path(out), changes or {}))
        again = restarted(peers)
        with alone_in(Path(out), peers, LEAVING if again or job() else 0.0):
            step = find_step(Path(out), peers)
            lessons = peers.attempt(lambda: open_lessons(config, base_of(config, step)))
            place = take_place(runtime, mesh_of(config, lessons, runtime.world_size))
            config = fit_rows(config, lessons, place)
            run = build_run(config, lessons, place)
            if step is None:
                say(f"{out}: no checkpoint yet; starting from step 0")
            else:
                restore(run, identity(config, lessons), config, step)
                say(f"resuming {out} after step {run.state.step} of {run.max_steps}")
            fit_noted(run, config, chosen="micro_batch_size" in (changes or {}) and not again)
            if changes:
                peers.attempt(lambda: rewrite(Path(out), config) if peers.is_main else None)
            return tune_run(config, lessons, run, place, completer, quiet)


def reopen(out: Path, changes: Mapping[str, Any]) -> tuple[Runtime, TuneConfig]:
    """The settings of a run that goes on."""
    if others := sorted(set(changes) - set(CHANGEABLE)):
        raise UserError(
            f"--{others[0]}: a resumed run keeps its settings; to change them start anew with --model {out}"
        )
    path = read_run_config(out)
    config = compose(path, out=str(out), **changes)
    check_trackers(config)
    runtime = Runtime.detect(config.device, config.dtype)
    return runtime, replace(config, device=runtime.device)


def base_of(config: TuneConfig, step: Path | None) -> Path | None:
    """Where shape and vocabulary lie: a checkpoint of all weights needs no base, unless pairs are held against it."""
    if step is None or config.method == "lora" or (Path(config.out) / "reference.safetensors").exists():
        return None
    return step


def tune_run(
    config: TuneConfig, lessons: Lessons, run: Run, place: Place, completer: Completer | None, quiet: bool
) -> Tuned:
    """Run the loop with its hooks; whatever ends it, the folder says how to go on."""
    if not quiet:
        describe(config, lessons, run)
    metrics = open_metrics(config, run.state.step, run.ranks)
    work = ADAPTER_WORK if config.method == "lora" else 1.0
    live = Live(run, device_peak(config.device, config.dtype), quiet, work=work)
    hooks: list[Hook] = [live, Log(metrics, live, config.log_every)]
    batches = held_out(config, lessons, run, place)
    evaluate: Evaluate | Unjudged = Unjudged()
    base_loss: float | None = None
    if batches is not None:
        evaluate = Evaluate(batches, metrics, live, config.eval_every or run.max_steps, PER[lessons.kind])
        patience = Patience(evaluate, config.patience)
        hooks += [evaluate, patience]
        if run.state.step == 0:
            evaluate.measure(run)
            base_loss = evaluate.latest.loss if evaluate.latest else None
        elif run.state.best_step:
            patience.look(run)
    if completer is not None and lessons.kind in ("text", "completion"):
        hooks.append(sampling(completer, lessons, metrics, live, run))
    notes = {"Fine-tuned from": config.model, "Fine-tuned on": config.data}
    save = Save(Path(config.out), config, writer_of(config, lessons), evaluate, notes, identity(config, lessons))
    stopped_by = drive(run, config, live, hooks, save, metrics)
    use = use_of(config.out, lessons)
    if run.ranks.is_main:
        write_report(Path(config.out), config, functools.partial(facts, config, lessons), use)
    done = run.ended or run.state.step == run.max_steps
    if done and base_loss is not None and not run.state.best_val_loss < base_loss and run.ranks.is_main:
        say(f"no step has a lower validation loss than the base ({base_loss:.4f}): a smaller --learning_rate may help")
    report = label_report(config, lessons, place) if done and run.ranks.is_main else None
    return Tuned(Path(config.out), run.state, evaluate.latest, stopped_by, report, use)


def sampling(completer: Completer, lessons: Lessons, metrics: Any, live: Live, run: Run) -> Sample:
    """A hook that goes on from the first held-out prompt, or from nothing where all text is learned."""
    prompt = prompt_of(lessons)
    shown = lessons.tokenizer.decode(prompt)[-80:]

    def write(model: GPT) -> str:
        return f"{shown} -> " * bool(prompt) + completer(model, lessons.tokenizer, prompt or "")

    return Sample(write, metrics, live, max(1, -(-run.max_steps // SAMPLES)))


def use_of(run: str, lessons: Lessons) -> str:
    """The command that does what was learned."""
    if lessons.kind == "label":
        return f"gpt2 classify --model {quote(run)} FILE"
    if lessons.train.chat_template is not None:
        return f"gpt2 chat --model {quote(run)}"
    return f"gpt2 generate --model {quote(run)} PROMPT"


def prompt_of(lessons: Lessons) -> list[int]:
    """The tokens before the first learned one of the first held-out example."""
    if lessons.kind == "text":
        return []
    example = (lessons.val or lessons.train).examples[0]
    assert isinstance(example, Encoded)
    ids: list[int] = example.ids[: int(np.argmax(example.wanted))].tolist()
    return ids


def facts(config: TuneConfig, lessons: Lessons, lines: Lines) -> Facts:
    """What a reader of the report wants to know first."""
    step = max(line["step"] for line in lines)
    how = f"LoRA of rank {config.rank}, alpha {config.alpha:g}" if config.method == "lora" else "all weights"
    found = [("Fine-tuned from", config.model), ("On", f"{config.data}: {lessons.train.format}"), ("Method", how)]
    found += loss_facts(lines, PER[lessons.kind])
    found += [
        (f"Validation {name}", f"{verdicts[-1]:.4g}")
        for name in ("accuracy", "margin")
        if (verdicts := numbers(lines, f"val/{name}"))
    ]
    seconds = max(numbers(lines, "elapsed"), default=0.0)
    trained = f"{step:,} of {config.max_steps:,} steps of {config.batch_examples} examples"
    found.append(
        ("Trained", f"{trained}, {clock(seconds)} on {config.device} in {config.dtype}{IN_8_BITS * config.fp8}")
    )
    return found + speed_facts(lines)


def label_report(config: TuneConfig, lessons: Lessons, place: Place) -> LabelReport | None:
    """How well the best checkpoint tells the held-out labels."""
    best = follow(Path(config.out) / "best")
    if lessons.kind != "label" or lessons.val is None or best is None:
        return None
    from gpt2.checkpoint.classifier import read_classifier

    model = read_classifier(best).module.to(place.device)
    return report_labels(model, lessons.train, lessons.val, lessons.tokenizer, place.device)


def describe(config: TuneConfig, lessons: Lessons, run: Run) -> None:
    """Lines that say what is about to happen."""
    trained = sum(parameter.numel() for parameter in run.weights.parameters)
    master = run.weights.master
    beside = sum(p.numel() for name, p in master.named_parameters() if "lora_" in name or name.startswith("score"))
    whole = parameters(master.config) + beside  # a quantised base has no parameters of its own to count
    share = "" if trained == whole else f", {trained / 1e6:.2f}M of them ({trained / whole:.1%}) trained"
    bits = IN_8_BITS * config.fp8
    say(f"{whole / 1e6:.1f}M parameters{share}, on {config.device} in {config.dtype}{bits}")
    if lessons.kind == "label" and run.state.step == 0 and (old := read_head(lessons.folder)):
        known = sum(label in old.labels for label in lessons.train.labels)
        say(f"{config.model}: a classifier; {known} of {len(lessons.train.labels)} labels go on from its head")
    val = "none held out" if lessons.val is None else f"{len(lessons.val):,} held out"
    say(f"{len(lessons.train):,} examples ({lessons.tokens:,} tokens), {val}")
    say(f"{what_was_chosen(config, lessons.kind, len(lessons.train))}, into {quote(config.out)}")
