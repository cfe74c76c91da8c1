"""A suite, task by task: each one's result is in a file of its own as soon as it is there, and is not asked again.

Nothing that changes from run to run (times, dates) is in the results, so that an interrupted run, run again, ends
with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import __version__, atomic
from gpt2.errors import UserError
from gpt2.evaluate.asked import Writing
from gpt2.evaluate.data import Data, Items, NoData, load, reachable
from gpt2.evaluate.measures import Measured, ReadOn, Setting, Write
from gpt2.evaluate.measures.read_on import window_and_stride
from gpt2.evaluate.protocols import TITLES, Job, paper_shots
from gpt2.runtime import say

if TYPE_CHECKING:
    from gpt2.evaluate.score import Scores

FORMAT = 4  # of the results: another number, and old ones are not taken for finished
LINE_EVERY = 10.0  # seconds between two lines of progress
LIBRARIES = ("numpy", "torch", "sacrebleu", "rouge-score")
SAME = 0.05  # nats a token, on average, by which a server's answers to the same text may differ


@dataclass(frozen=True)
class Options:
    """What holds for a whole run. `limit`: so many items (of a text: lines or articles) of each task; 0 is all."""

    folders: tuple[Path, ...] = ()
    limit: int = 0
    seed: int = 0
    window: int = 0
    stride: int = 0


@dataclass
class Suite:
    """A run: its jobs, who is asked (made when first needed), and where the results go."""

    jobs: Sequence[Job]
    scores: Callable[[], Scores]
    model: Mapping[str, Any]  # name, sha256, parameters, ...: whatever identifies it
    options: Options
    out: Path
    strict: bool = False  # a task without data is an error
    skipped: Mapping[str, str] = field(default_factory=dict[str, str])  # name -> why it is not asked at all

    def run(self) -> dict[str, Any]:
        """All results; those that are there already are not asked for again. What cannot be asked is left out."""
        self._refuse_another_model()
        self._refuse_windows()
        undone = {job.name: reason for job in self.jobs if (reason := beyond(self.model, job))}
        jobs = [job for job in self.jobs if job.name not in undone]
        unscored = self._refuse_missing_libraries(jobs)
        undone, jobs = undone | unscored, [job for job in jobs if job.name not in unscored]
        results, missing = [], {}
        for number, job in enumerate(jobs, 1):
            title = f"[{number}/{len(jobs)}] {job.title}"
            try:
                data = self._load(job)
            except NoData as error:
                if finished := self._finished(job):
                    say(f"{title}: done before, {headline(finished)}; its data cannot be reached now")
                    results.append(finished)
                    continue
                if self.strict:
                    raise
                missing[job.name] = str(error)
                continue
            results.append(self._result(job, data, title))
        if not results:
            reason = next(iter([*undone.values(), *missing.values()]))
            raise UserError(f"no task can be asked: {reason}" if undone else f"no task has data: {reason}")
        found = {"gpt2": __version__, "format": FORMAT, "model": dict(self.model), "seed": self.options.seed}
        found |= {"versions": versions(), "results": results, "without_data": missing}
        found["left_out"] = {**self.skipped, **undone}
        atomic.write_text(self.out / "results.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        return found

    def _load(self, job: Job) -> Data:
        return load(job.task.name, *job.task.source(job.protocol), self._folders(job), examples=bool(job.shots))

    def _folders(self, job: Job) -> list[Path]:
        return [job.task.folder] if job.task.folder else list(self.options.folders)

    def _result(self, job: Job, data: Data, title: str) -> dict[str, Any]:
        path, key = self._path(job), self._key(job, data)
        if finished := read_finished(path, key):
            say(f"{title}: done before, {headline(finished)}")
            return finished
        started = time.monotonic()
        measured = self._measure(job, data, title)
        result = describe(job, data, measured, self.options)
        items = {name: column.rows for name, column in measured.columns.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        written = {"key": key, "asked": self._asked(job), "model": dict(self.model), "result": result, "items": items}
        text = json.dumps(written, ensure_ascii=False)
        atomic.write_text(path, text + "\n")
        say(f"{title}: {headline(result)}, {clock(time.monotonic() - started)}")
        return result

    def _measure(self, job: Job, data: Data, title: str) -> Measured:
        options = self.options
        items = data.test.items[: options.limit or None]
        pool = data.train.items if data.train else data.test.items
        setting = Setting(job.shots, options.seed, options.window, options.stride, reporter(title))
        say(f"{title}: {len(items):,} items")
        return job.ask.measure(self.scores(), items, pool if job.shots else [], setting)

    def _path(self, job: Job) -> Path:
        return self.out / "tasks" / f"{job.name}.json"

    def _finished(self, job: Job) -> dict[str, Any] | None:
        """The result of an earlier run that asked the same, whatever its data was."""
        found = read_task(self._path(job))
        return found["result"] if found.get("asked") == self._asked(job) else None

    def _key(self, job: Job, data: Data) -> str:
        """What a result depends on: another key, another result."""
        return hashed(self._asked(job), data.test.sha256, data.train.sha256 if data.train and job.shots else "")

    def _asked(self, job: Job) -> str:
        """All of it but the data."""
        options = vars(replace(self.options, folders=()))
        table = dict(job.task.table)
        return hashed(FORMAT, __version__, identity(self.model), job.name, job.ask.settings(), table, options)

    def _refuse_another_model(self) -> None:
        """Results of two models never mix in one folder."""
        for path in sorted((self.out / "tasks").glob("*.json")):
            other = read_task(path).get("model")
            if other and (identity(other) != identity(self.model) or probed_apart(other, self.model)):
                raise UserError(f"{self.out}: holds results of {other['name']}; choose another folder with --out")

    def _refuse_windows(self) -> None:
        """Before anything is scored."""
        if any(isinstance(job.ask, ReadOn) for job in self.jobs):
            window_and_stride(self.options.window, self.options.stride, int(self.model["context_length"]))

    def _refuse_missing_libraries(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Before anything is scored: texts are compared when all are written, and would be lost.

        UserError where a task was named or its files are there; of a suite's that only the hub might have, why they
        are not asked.
        """
        left_out: dict[str, str] = {}
        for job in jobs:
            forms, hub = job.task.source(job.protocol)
            places = job.task.name, forms, self._folders(job)
            if not isinstance(job.ask, Write) or self._finished(job) or not reachable(*places[:2], hub, places[2]):
                continue
            try:
                job.ask.prepare()
            except UserError as error:
                if self.strict or reachable(*places[:2], None, places[2]):
                    raise UserError(f"{job.task.name}: {error}, or leave it out with --tasks") from None
                left_out[job.name] = f"{job.task.name}: {error}"
        return left_out


def hashed(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def identity(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model is the same wherever it lies. The probe is compared by itself: no two answers agree to the last digit."""
    return {name: value for name, value in model.items() if name not in ("name", "probe")}


def probed_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether models behind a server differ in the log-probabilities of remote.py's probe by more than rounding."""
    pairs = list(zip(one.get("probe") or [], other.get("probe") or [], strict=False))
    return bool(pairs) and sum(abs(a - b) for a, b in pairs) / len(pairs) > SAME


def beyond(model: Mapping[str, Any], job: Job) -> str:
    """Why this model cannot be asked in this way; empty where it can."""
    writing: Writing | None = getattr(job.ask, "writing", None)
    if "server" not in model or writing is None or writing.is_greedy:
        return ""
    return f"{job.name}: is written by beams or draws, and a server writes greedily only; it needs the model's files"


def read_finished(path: Path, key: str) -> dict[str, Any] | None:
    found = read_task(path)
    return found["result"] if found.get("key") == key else None


def read_task(path: Path) -> dict[str, Any]:
    """A task's file; empty where there is none, or none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.keys() >= {"key", "model", "result"} else {}


def describe(job: Job, data: Data, measured: Measured, options: Options) -> dict[str, Any]:
    """A result as it is written: figures with standard errors, and all that they depend on."""
    metrics = {
        name: {
            "value": column.value,
            "stderr": column.standard_error(options.seed),
            "kind": column.kind,
            "percent": column.percent,
        }
        for name, column in measured.columns.items()
    }
    found = {
        "task": job.task.name,
        "title": job.task.title,
        "protocol": job.protocol,
        "protocol_title": TITLES[job.protocol],
        "shots": job.shots,
        "paper_shots": paper_shots(job.task, job.protocol),
        "metrics": metrics,
        "items": measured.items,
        "limit": options.limit or None,
        "split": data.test.split,
        "usual_split": job.task.source(job.protocol)[0][0].split,
        "data": {"files": data.test.names, "sha256": data.test.sha256},
        "how": job.ask.settings() | measured.facts,
        "note": job.task.remark(job.protocol),
        "versions": versions(),
    }
    if job.task.table:
        found["task_table"] = dict(job.task.table)
    if job.shots:
        found["examples"] = drawn_from(data.train) if data.train else "the other items of the set"
        found["pool"] = len(data.train.items) if data.train else len(data.test.items) - 1
        if job.protocol == "harness":
            found["draw"] = "by our generator, not lm-evaluation-harness's: it would show other examples"
    return found


def drawn_from(train: Items) -> dict[str, Any]:
    return {"files": train.names, "sha256": train.sha256, "split": train.split}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def reporter(title: str) -> Callable[[int, int], None]:
    """A line now and then: how far, and how long it still takes."""
    started = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY or not 0 < done < total:
            return
        last = now
        say(f"{title}: {done / total:.0%}, {clock((now - started) * (total - done) / done)} left")

    return report


def headline(result: Mapping[str, Any]) -> str:
    name, metric = next(iter(result["metrics"].items()))
    return f"{name} {shown(metric)}"


def shown(metric: Mapping[str, Any]) -> str:
    """`45.99 ± 0.70`: a share in percent."""
    scale = 100 if metric["percent"] else 1
    spread = "" if metric["stderr"] is None else f" ± {metric['stderr'] * scale:,.2f}"
    return f"{metric['value'] * scale:,.2f}{spread}"


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
