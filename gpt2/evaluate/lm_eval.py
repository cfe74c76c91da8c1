"""The model inside lm-evaluation-harness: `--model gpt2 --model_args path=FOLDER`.

A release of lm-eval that knows entry points (those after 0.4.13) finds it once both are installed. With an older one,

    python -m gpt2.evaluate.lm_eval --model gpt2 --model_args path=FOLDER --tasks ...

is its own command line with this model known; in Python, importing this module is enough. Requests become tokens and
are cut exactly as in its Hugging Face backend, so that the scores of both can be set beside each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lm_eval.models  # noqa: F401  # its own models: the registry looks for them only while it knows none
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

from gpt2.api import load
from gpt2.errors import UserError, did_you_mean
from gpt2.evaluate.score import Scorer, end_of_text
from gpt2.inference.sampling import SamplingParams

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is there counts
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
GREEDY_TOO = ("repetition_penalty",)
UNASKED = "cuda:0"  # what the harness's command line says where the user names no device, a GPU or not
NOT_OURS = "the gpt2 model does not know it"


@register_model("gpt2")
class GPT2LM(TemplateLM):
    """A model folder, run folder or Hugging Face id as lm-evaluation-harness asks for it.

    `path` (or, as its Hugging Face backend says, `pretrained`), `device`, `dtype`, `weights` and `kv` are those of
    `gpt2.load`; `max_gen_toks` is for tasks that name no length, `seed` for those that sample. The harness always
    passes `batch_size` and `max_batch_size`: here a step takes as many requests as fit, and neither changes a score.
    """

    def __init__(
        self,
        path: str = "",
        pretrained: str = "",
        device: str | None = None,
        dtype: str = "float32",
        weights: str = "auto",
        kv: str = "auto",
        max_gen_toks: int = 256,
        seed: int = 1234,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if bool(path) == bool(pretrained):
            raise UserError("name the model: --model_args path=FOLDER")
        where = "auto" if device in (None, "", UNASKED) else str(device)
        self.model = load(path or pretrained, where, dtype, weights, kv)
        self.scorer = Scorer(self.model)
        self.max_gen_toks, self.seed = max_gen_toks, seed

    @property
    def eot_token_id(self) -> int:
        return end_of_text(self.scorer.tokenizer)[0]

    @property
    def max_length(self) -> int:
        """The model's context."""
        return self.scorer.context_length

    @property
    def tokenizer_name(self) -> str:
        """What names the vocabulary in caches of requests."""
        return self.scorer.tokenizer.hash

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        model = self.model
        return {"model_folder": str(model.folder), "weights": model.weights, "kv": model.kv, "dtype": model.dtype}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens; end-of-text written out counts as the token, as in transformers. GPT-2 adds none of its own."""
        return self.scorer.tokenizer.encode(string, allowed_special="all")

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Each text's log-likelihood in windows of the whole context that do not overlap, after end-of-text."""
        texts = [request.args[0] for request in requests]
        with Bar("Running loglikelihood_rolling requests", disable_tqdm) as bar:
            rolled = self.scorer.rolling([self.tok_encode(text) for text in texts], progress=bar.show)
        for text, result in zip(texts, rolled, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), result.log_likelihood)
        return [result.log_likelihood for result in rolled]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context."""
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        params = [self._params(request.args[1]) for request in requests]
        texts = self.scorer.write(prompts, params)
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        with Bar("Running loglikelihood requests", disable_tqdm) as bar:
            scored = self.scorer.continuations([(context, after) for _, context, after in requests], bar.show)
        answers = [(one.log_likelihood, one.greedy) for one in scored]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _params(self, settings: dict[str, Any]) -> SamplingParams:
        """The harness's `generation_kwargs` as our settings; UserError for one that has no counterpart."""
        left = dict(settings)
        until = left.pop("until", None) or []
        lengths = [value for name in LENGTHS if (value := left.pop(name, None)) is not None]
        sample = left.pop("do_sample", None)
        chosen = {name: left.pop(name) for name in SAMPLING if name in left}
        if sample is None:  # as its Hugging Face backend: a temperature alone means to sample
            sample = float(chosen.get("temperature") or 0.0) > 0.0
        if left:
            name = next(iter(left))
            raise UserError(f"generation_kwargs {name}: {NOT_OURS}{did_you_mean(name, (*LENGTHS, *SAMPLING))}")
        if sample:
            chosen = {"temperature": 1.0, **chosen}
        else:  # no filter takes out the likeliest token, but a penalty may make it another one
            chosen = {name: chosen[name] for name in GREEDY_TOO if name in chosen} | {"temperature": 0.0}
        return SamplingParams(
            max_new_tokens=lengths[0] if lengths else self.max_gen_toks,
            stop=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
            seed=self.seed,
            **chosen,
        )


class Bar:
    """The harness's kind of progress bar, in tokens."""

    def __init__(self, title: str, disable: bool) -> None:
        from tqdm import tqdm

        self._bar = tqdm(desc=title, unit="tokens", unit_scale=True, disable=disable)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def show(self, done: int, total: int) -> None:
        """So many tokens of all are read."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)


def main() -> None:
    """lm-eval's own command line."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
