"""EleutherAI's lm_eval with the cache of a codebook: what a method costs in tasks, where perplexity does not see it.

    python -m kvcal.harness --model kvcal --model_args pretrained=DIR,codebook=FILE.safetensors,method=nuq4-1% --tasks gsm8k

The command line is lm_eval's own. The model `kvcal` takes what lm_eval's `hf` takes, and codebook and method. method=fp is the
model without the cache: run it, too, so that two results differ in nothing else. lm_eval's --use_cache keeps answers by request
alone: give each method its own file.
"""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kvcal.cache.kvcal_cache import KvcalCache
from kvcal.cache.method import parse_method
from kvcal.errors import Error, UsageError

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError(f"kvcal.harness needs lm_eval with what it runs transformers by ({error}): pip install 'lm-eval[hf]'"
                      ) from error

_WITHOUT_CACHE = "fp"


def _check(codebook: str | os.PathLike[str] | None, method: str | None) -> None:
    """What can be told before the model is loaded."""
    if method is None:
        raise UsageError("--model_args has no method: give method=nuq4-1% or another of docs/methods.md, or method=fp for the "
                         "model without the cache")
    if method == _WITHOUT_CACHE:
        return
    parse_method(method)
    if codebook is None:
        raise UsageError(f"--model_args has no codebook, which method={method} needs: give codebook=FILE.safetensors, written by "
                         "kvcal export FILE.h5 --format safetensors")
    if not os.path.isfile(codebook):
        raise Error(f"{os.fspath(codebook)}: no such file")


@register_model("kvcal")
class KvcalLM(HFLM):  # type: ignore[misc]
    """lm_eval's `hf`, each of whose forwards reads keys and values through a KvcalCache. `cache` is None with method=fp."""

    def __init__(self, pretrained: Any, codebook: str | os.PathLike[str] | None = None, method: str | None = None,
                 **options: Any) -> None:
        _check(codebook, method)
        super().__init__(pretrained, **options)
        self.method = method
        self.codebook = codebook
        self.cache: KvcalCache | None = None
        self._bytes = self._fp16_bytes = 0  # of all forwards
        if method != _WITHOUT_CACHE and codebook is not None:
            self.cache = KvcalCache.from_file(codebook, self.model, method=method)

    @contextmanager
    def _emptied(self, cache: KvcalCache, tokens: int) -> Iterator[None]:
        """The cache for one batch, which puts at least so many tokens into it."""
        cache.reset()
        try:
            yield
            if cache.get_seq_length() < tokens:
                raise Error(f"{type(self.model).__name__} took {tokens} tokens and put {cache.get_seq_length()} into the cache: "
                            "it does not read past_key_values")
            self._bytes += cache.nbytes
            self._fp16_bytes += cache.fp16_nbytes
        finally:
            cache.reset()

    def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
        """A batch of loglikelihood requests is padded on the right, without a mask: what follows a token bears on nothing."""
        cache = self.cache
        if cache is None:
            return super()._model_call(inps, *args, **kwargs)

        def give_cache(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return given, {**named, "past_key_values": cache, "use_cache": True}

        hook = self.model.register_forward_pre_hook(give_cache, with_kwargs=True)
        try:
            with self._emptied(cache, inps.shape[1]):
                return super()._model_call(inps, *args, **kwargs)
        finally:
            hook.remove()

    def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
        if self.cache is None:
            return super()._model_generate(context, *args, **kwargs)
        with self._emptied(self.cache, context.shape[1]):
            return super()._model_generate(context, *args, **kwargs, past_key_values=self.cache)

    def get_model_info(self) -> dict[str, Any]:
        """For the results: also the method, and what it took over all forwards, padding counted."""
        info = {**super().get_model_info(), "kvcal_method": self.method}
        if self.cache is not None and self.codebook is not None:
            info["kvcal_codebook"] = os.fspath(self.codebook)
            info["kvcal_bits_per_value"] = 16 * self._bytes / self._fp16_bytes if self._fp16_bytes else None
        return info


def main() -> None:
    try:
        cli_evaluate()
    except Error as error:
        print(f"kvcal: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


if __name__ == "__main__":
    main()
