"""Generation as mamba-ssm has it: states in ``InferenceParams``, one decoding loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from longseq.core.compat._names import module_getattr
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.generation.sampling import (
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalised,
    require_numbers,
    tempered,
)

__all__ = [
    "DecoderOnlyOutput",
    "GenerationMixin",
    "InferenceParams",
    "decode",
    "modify_logit_for_repetition_penalty",
    "modify_logits_for_min_p_filtering",
    "modify_logits_for_top_k_filtering",
    "modify_logits_for_top_p_filtering",
    "sample",
]
__getattr__ = module_getattr(__name__)


@dataclass
class InferenceParams:
    """What is carried from one call of a model to the next.

    Attributes:
        max_seqlen: positions at most.
        max_batch_size: rows at most.
        seqlen_offset: positions seen so far.
        batch_size_offset: first row in the caches of attention.
        key_value_memory_dict: states by the number of their layer.
        lengths_per_sample: positions seen so far, of every row, where they differ (B,).
    """

    max_seqlen: int
    max_batch_size: int
    seqlen_offset: int = 0
    batch_size_offset: int = 0
    key_value_memory_dict: dict[Any, Any] = field(default_factory=dict)
    lengths_per_sample: Tensor | None = None

    def reset(self, max_seqlen: int, max_batch_size: int) -> None:
        """Begins again; the states are overwritten by the next prompt."""
        self.max_seqlen, self.max_batch_size = max_seqlen, max_batch_size
        self.seqlen_offset = 0
        if self.lengths_per_sample is not None:
            self.lengths_per_sample.zero_()


@dataclass
class DecoderOnlyOutput:
    """What was generated.

    Attributes:
        sequences: prompt and new tokens (B, L).
        scores: the logits (B, vocabulary) of every new token, if asked for.
    """

    sequences: Tensor
    scores: tuple[Tensor, ...] | None = None


def modify_logits_for_top_k_filtering(logits: Tensor, top_k: int) -> None:
    """Sets all but the ``top_k`` largest logits of a row to -inf, in place."""
    logits.copy_(keep_top_k(logits, top_k))


def modify_logits_for_top_p_filtering(logits: Tensor, top_p: float) -> None:
    """Sets all but the likeliest tokens that together have probability ``top_p`` to -inf, in place;
    nothing if it is not between 0 and 1."""
    if 0 < top_p < 1:
        logits.copy_(keep_top_p(logits, top_p))


def modify_logits_for_min_p_filtering(logits: Tensor, min_p: float) -> None:
    """Sets tokens whose probability is below ``min_p`` times the likeliest one's to -inf, in place;
    nothing if it is not between 0 and 1."""
    if 0 < min_p < 1:
        logits.copy_(keep_min_p(logits, min_p))


def modify_logit_for_repetition_penalty(
    logits: Tensor, prev_output_tokens: Tensor, repetition_penalty: float = 1.0
) -> Tensor:
    """Divides positive logits of tokens that occurred by the penalty, and multiplies negative ones,
    in place (arXiv 1909.05858).

    Args:
        logits: (B, vocabulary).
        prev_output_tokens: (B, L).
        repetition_penalty: 1 changes nothing.
    """
    if repetition_penalty == 1.0:
        return logits
    seen = logits.gather(1, prev_output_tokens)
    return logits.scatter_(1, prev_output_tokens, penalised(seen, repetition_penalty))


def sample(
    logits: Tensor,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Returns a token a row.

    Args:
        logits: (B, vocabulary).
        top_k: 1 takes the likeliest; more draws from so many; 0 from all.
        top_p: draws from the likeliest that together have this probability; 0 from all.
        min_p: draws from those that have this part of the likeliest one's probability.
        temperature: the logits are divided by it before ``top_p`` and ``min_p``.

    Raises:
        ConfigError: for values out of range.
        DataError: for logits that are NaN.
    """
    if top_k < 0 or not 0 <= top_p <= 1 or not 0 <= min_p <= 1 or temperature <= 0:
        raise ConfigError(
            f"sampling needs top_k ≥ 0, top_p and min_p between 0 and 1 and a positive "
            f"temperature, got {top_k}, {top_p}, {min_p} and {temperature}"
        )
    require_numbers(logits)
    if top_k == 1:
        return logits.argmax(-1)
    scaled = tempered(logits.float(), temperature)
    if top_k:
        modify_logits_for_top_k_filtering(scaled, top_k)
    modify_logits_for_top_p_filtering(scaled, top_p)
    modify_logits_for_min_p_filtering(scaled, min_p)
    return draw(scaled, torch.rand(len(scaled), dtype=torch.float64, device=scaled.device))


@torch.inference_mode()
def decode(
    input_ids: Tensor,
    model: Any,
    max_length: int,
    top_k: int = 1,
    top_p: float = 0.0,
    min_p: float = 0.0,
    temperature: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    teacher_outputs: Tensor | None = None,
    vocab_size: int | None = None,
    cg: bool = False,
    enable_timing: bool = False,
    output_scores: bool = False,
    streamer: Any = None,
) -> DecoderOnlyOutput:
    """Continues prompts of equal length.

    Args:
        input_ids: prompts (B, L).
        model: called with tokens, ``position_ids``, ``inference_params`` and ``num_last_tokens``.
        max_length: tokens at the end, the prompt's included.
        top_k: see ``sample`` for this and the next three.
        top_p: see there.
        min_p: see there.
        temperature: see there.
        repetition_penalty: see ``modify_logit_for_repetition_penalty``.
        eos_token_id: generation ends when every row has just got it, or one of several.
        teacher_outputs: tokens that are taken instead of drawn ones, as far as they go (B, ·).
        vocab_size: only so many logits count: those after it are padding.
        cg: accepted and not needed: there is no graph to capture.
        enable_timing: whether the time is printed.
        output_scores: whether the logits are kept.
        streamer: told the prompt and every new token by ``put``, and the end by ``end``.

    Returns:
        The tokens, and the logits if asked for.

    Raises:
        ArgumentError: for prompts that are no tokens (B, L ≥ 1).
    """
    del cg
    if input_ids.dim() != 2 or not input_ids.shape[1] or input_ids.is_floating_point():
        raise ArgumentError(
            f"decode: input_ids must be tokens (batch, length ≥ 1), got {input_ids.dtype} "
            f"{tuple(input_ids.shape)}"
        )
    ends = None if eos_token_id is None else torch.tensor(eos_token_id, device=input_ids.device)
    began = time.perf_counter()
    batch = input_ids.shape[0]
    carried = InferenceParams(max_seqlen=max_length, max_batch_size=batch)
    if streamer is not None:
        streamer.put(input_ids.cpu())
    tokens, new, scores = input_ids, input_ids, []
    while tokens.shape[1] < max_length:
        seen = carried.seqlen_offset
        places = torch.full_like(new, seen) if seen else None
        logits = model(
            new, position_ids=places, inference_params=carried, num_last_tokens=1
        ).logits.squeeze(1)[..., :vocab_size]
        if output_scores:
            scores.append(logits.clone())
        carried.seqlen_offset += new.shape[1]
        if teacher_outputs is not None and teacher_outputs.shape[1] > tokens.shape[1]:
            new = teacher_outputs[:, tokens.shape[1], None]
        else:
            logits = modify_logit_for_repetition_penalty(logits, tokens, repetition_penalty)
            new = sample(logits, top_k, top_p, min_p, temperature).unsqueeze(1)
        tokens = torch.cat([tokens, new], 1)
        if streamer is not None:
            streamer.put(new.cpu())
        if ends is not None and bool(torch.isin(new, ends).all()):
            break
    if streamer is not None:
        streamer.end()
    if enable_timing:
        if input_ids.is_cuda:
            torch.cuda.synchronize()
        print(f"Prompt processing + decoding time: {1e3 * (time.perf_counter() - began):.0f}ms")
    return DecoderOnlyOutput(tokens, tuple(scores) if output_scores else None)


class GenerationMixin:
    """``generate`` for a model whose layers keep their states in ``InferenceParams``."""

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        """Returns the empty states of all layers.

        Raises:
            NotImplementedError: if the model does not define it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no allocate_inference_cache")

    def generate(
        self,
        input_ids: Tensor,
        max_length: int,
        top_k: int = 1,
        top_p: float = 0.0,
        min_p: float = 0.0,
        temperature: float = 1.0,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        **kwargs: Any,
    ) -> Tensor | DecoderOnlyOutput:
        """Continues prompts; see ``decode``.

        Args:
            input_ids: prompts (B, L).
            max_length: tokens at the end, the prompt's included.
            top_k: see ``sample`` for this and the next three.
            top_p: see there.
            min_p: see there.
            temperature: see there.
            return_dict_in_generate: whether a ``DecoderOnlyOutput`` is returned.
            output_scores: whether it has the logits.
            **kwargs: further arguments of ``decode``.

        Returns:
            The tokens (B, max_length or fewer).
        """
        done = decode(
            input_ids,
            self,
            max_length,
            top_k,
            top_p,
            min_p,
            temperature,
            output_scores=output_scores,
            **kwargs,
        )
        return done if return_dict_in_generate else done.sequences
