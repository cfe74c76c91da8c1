"""TensorBoard and Weights & Biases by a flag: they get every line of metrics.jsonl and cannot hold up or end a run.

TensorBoard's events lie in RUN/tensorboard/, what Weights & Biases keeps in RUN/wandb/; a resumed run continues both.
"""

from __future__ import annotations

import html
import importlib.util
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any

from gpt2 import atomic
from gpt2 import config as settings
from gpt2.distributed.ranks import ALONE, Ranks
from gpt2.errors import UserError
from gpt2.runtime import say
from gpt2.train.metrics import NAME, MetricsFile, Tracker, is_number, parse
from gpt2.train.settings import RunSettings

MOST_WAITING = 10_000  # lines, while a tracker is slow
CLOSE_SECONDS = 20.0  # a run that was told to stop has 30


def check_trackers(config: RunSettings) -> None:
    """UserError where a tracker that was asked for is not installed, or would have to ask the user for a key."""
    for name, wanted in (("tensorboard", config.tensorboard), ("wandb", config.wandb)):
        if wanted and not installed(name):
            raise UserError(f"--{name}: the package {name} is not installed; get it with: pip install {name}")
    if config.wandb and not has_key():
        raise UserError("--wandb: no key on this machine; run `wandb login`, or set WANDB_MODE=offline")


def installed(name: str) -> bool:
    """A folder of that name is no package: both trackers leave one behind."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def has_key() -> bool:
    """Whether Weights & Biases can be told of the run without a question that nobody may be there to answer."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return True
    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # versions that cannot be asked
        return True


def open_metrics(config: RunSettings, resume_step: int = 0, ranks: Ranks = ALONE) -> MetricsFile:
    """The run's metrics.jsonl with the trackers that the config names; in all processes but the main one, nothing."""
    if not ranks.is_main:
        return MetricsFile(None)
    return MetricsFile(Path(config.out), resume_step, open_trackers(config, resume_step))


def open_trackers(config: RunSettings, resume_step: int) -> list[Tracker]:
    """Those that the config names, each in its thread."""
    found: list[Tracker] = []
    if config.tensorboard:
        found.append(Background("tensorboard", lambda: TensorBoard(config, resume_step)))
    if config.wandb:
        reached = last_step(Path(config.out) / NAME)
        found.append(Background("wandb", lambda: WeightsAndBiases(config, reached)))
    return found


def last_step(path: Path) -> int:
    """Of all lines ever written, those after the checkpoint included."""
    return max((line["step"] for line in parse(path)[0]), default=0) if path.exists() else 0


class Background:
    """A tracker in a thread of its own. Whatever goes wrong in it is one line on stderr; then it is silent."""

    def __init__(self, name: str, start: Callable[[], Tracker]) -> None:
        self.name, self.start = name, start
        self.lines: queue.Queue[tuple[int, Mapping[str, Any]] | None] = queue.Queue(MOST_WAITING)
        self.failed = False
        self.thread = threading.Thread(target=self.work, name=name, daemon=True)
        self.thread.start()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        try:
            if not self.failed:
                self.lines.put_nowait((step, values))
        except queue.Full:
            self.give_up("it takes no more lines")

    def close(self) -> None:
        """Wait for what is under way, but not for ever: a network may be gone."""
        if self.failed:
            return
        try:
            self.lines.put(None, timeout=CLOSE_SECONDS)
        except queue.Full:
            self.give_up("it takes no more lines")
            return
        self.thread.join(CLOSE_SECONDS)
        if self.thread.is_alive():
            self.give_up(f"not done after {CLOSE_SECONDS:.0f} s")

    def work(self) -> None:
        try:
            tracker = self.start()
            while not self.failed and (line := self.lines.get()) is not None:
                tracker.write(*line)
            tracker.close()
        except BaseException as error:  # of others' code, in no thread that could end the run
            self.give_up(reason(error))

    def give_up(self, why: str) -> None:
        if not self.failed:
            self.failed = True
            say(f"{self.name}: {why}; the run goes on without it (metrics.jsonl has every line)")


def reason(error: BaseException) -> str:
    """One line of it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).partition("\n")[0] or type(error).__name__


class TensorBoard:
    """Events in RUN/tensorboard/: `tensorboard --logdir RUN` shows them. Those after the checkpoint are taken back."""

    def __init__(self, config: RunSettings, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        hush("tensorboard.")
        self.writer: Any = SummaryWriter(Path(config.out) / "tensorboard", purge_step=resume_step + 1, flush_secs=10)
        self.writer.add_text("settings", as_code(settings.dump_toml(settings.to_tree(config))), resume_step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in flatten(values).items():
            if isinstance(value, str):
                self.writer.add_text(name, as_code(value), step)
            else:
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def hush(package: str) -> None:
    """No traceback from the package's own threads: their errors come back to those who call it, and are told there."""
    before = threading.excepthook

    def tell(args: threading.ExceptHookArgs) -> None:
        if not type(args.thread).__module__.startswith(package):
            before(args)

    threading.excepthook = tell


class WeightsAndBiases:
    """One run of the project, resumed under the same id; steps that it has had in full are not sent again."""

    def __init__(self, config: RunSettings, reached: int) -> None:
        import wandb

        out = Path(config.out)
        self.reached = reached
        self.wrap: Callable[[str], Any] = wandb.Html
        self.run: Any = wandb.init(
            project=config.wandb,
            name=out.resolve().name,
            dir=str(out),
            id=run_id(out / "wandb" / "run_id"),
            resume="allow",
            config=settings.to_tree(config),
            settings=wandb.Settings(**patience(wandb.Settings)),
        )
        self.run.define_metric("*", step_metric="step")
        say(f"wandb: {self.where()}")

    def where(self) -> str:
        """Its page, or how to send it there."""
        if not self.run.offline:
            return str(self.run.url)
        return f"offline; send it later with: wandb sync {quote(str(Path(self.run.dir).parent))}"

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        if step < self.reached:  # of the last step itself a kill may have left out a part
            return
        items = flatten(values).items()
        shown = {name: self.wrap(f"<pre>{html.escape(v)}</pre>") if isinstance(v, str) else v for name, v in items}
        self.run.log({"step": step, **shown})

    def close(self) -> None:
        self.run.finish()


def patience(accepted: Any) -> dict[str, Any]:
    """Settings that bound how long a start and an end wait for the network; only those that this version knows."""
    wanted = {"console": "off", "silent": True, "init_timeout": CLOSE_SECONDS, "finish_timeout": CLOSE_SECONDS / 2}
    known = getattr(accepted, "model_fields", wanted)
    return {name: value for name, value in wanted.items() if name in known}


def run_id(path: Path) -> str:
    """The id that the file holds, or a new one that it holds from now on."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        atomic.write_text(path, secrets.token_hex(4) + "\n")
    return path.read_text(encoding="utf-8").strip()


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, float | str]:
    """`{"epochs": {"web": 0.4}}` as `{"epochs/web": 0.4}`; only finite numbers and texts."""
    found: dict[str, float | str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found.update(flatten(value, f"{prefix}{name}/"))
        elif isinstance(value, str) or is_number(value):
            found[prefix + name] = value
    return found


def as_code(text: str) -> str:
    """Markdown that shows the text as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())
