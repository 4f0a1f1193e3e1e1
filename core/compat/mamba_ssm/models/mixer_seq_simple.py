"""The language model of mamba-ssm: embedding, blocks, norm, head."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longseq.core.checkpoints.safe import check_state_dict
from longseq.core.compat._names import module_getattr
from longseq.core.compat.mamba_ssm.models.config_mamba import MambaConfig
from longseq.core.compat.mamba_ssm.modules._checks import check_sizes, check_tokens, embedded
from longseq.core.compat.mamba_ssm.modules.block import Block, add_norm
from longseq.core.compat.mamba_ssm.modules.mamba2 import Mamba2
from longseq.core.compat.mamba_ssm.modules.mamba_simple import Mamba
from longseq.core.compat.mamba_ssm.modules.mha import MHA
from longseq.core.compat.mamba_ssm.modules.mlp import GatedMLP
from longseq.core.compat.mamba_ssm.ops.triton.layer_norm import RMSNorm
from longseq.core.compat.mamba_ssm.utils.generation import GenerationMixin
from longseq.core.compat.mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf
from longseq.core.errors import ConfigError
from longseq.core.files import atomic_path

__all__ = ["MambaLMHeadModel", "MixerModel", "create_block"]
__getattr__ = module_getattr(__name__)

_LAYERS = {"Mamba1": Mamba, "Mamba2": Mamba2}


class CausalLMOutput(NamedTuple):
    """What the model returns.

    Attributes:
        logits: (B, L, vocabulary).
    """

    logits: Tensor


def create_block(
    d_model: int,
    d_intermediate: int = 0,
    ssm_cfg: dict[str, Any] | None = None,
    attn_layer_idx: list[int] | None = None,
    attn_cfg: dict[str, Any] | None = None,
    norm_epsilon: float = 1e-5,
    rms_norm: bool = False,
    residual_in_fp32: bool = False,
    fused_add_norm: bool = False,
    layer_idx: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Block:
    """Returns one layer; arguments as ``MixerModel``, and the layer's number.

    Raises:
        ConfigError: if ``ssm_cfg`` names a layer that there is not.
    """
    where: dict[str, Any] = {"device": device, "dtype": dtype}
    mixer: Any
    if layer_idx in (attn_layer_idx or []):
        mixer = partial(MHA, layer_idx=layer_idx, **(attn_cfg or {}), **where)
    else:
        settings = copy.deepcopy(ssm_cfg or {})
        kind = settings.pop("layer", "Mamba1")
        if kind not in _LAYERS:
            raise ConfigError(f"ssm_cfg: layer must be one of {', '.join(_LAYERS)}, got {kind!r}")
        mixer = partial(_LAYERS[kind], layer_idx=layer_idx, **settings, **where)
    norm: Any = partial(RMSNorm if rms_norm else nn.LayerNorm, eps=norm_epsilon, **where)
    mlp: Any = nn.Identity
    if d_intermediate:
        mlp = partial(GatedMLP, hidden_features=d_intermediate, out_features=d_model, **where)
    block = Block(d_model, mixer, mlp, norm, fused_add_norm, residual_in_fp32)
    block.layer_idx = layer_idx  # type: ignore[assignment]
    return block


def _init_weights(
    module: nn.Module,
    n_layer: int,
    initializer_range: float = 0.02,
    rescale_prenorm_residual: bool = True,
    n_residuals_per_layer: int = 1,
) -> None:
    """Initialises one module as the published models are: biases 0, embeddings normal, and what
    writes into the residual sum divided by the root of how many do."""
    if isinstance(module, nn.Linear):
        if module.bias is not None and not getattr(module.bias, "_no_reinit", False):
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=initializer_range)
    if rescale_prenorm_residual:
        for name, parameter in module.named_parameters():
            if name in ("out_proj.weight", "fc2.weight"):
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
                with torch.no_grad():
                    parameter.div_(math.sqrt(n_residuals_per_layer * n_layer))


class MixerModel(nn.Module):
    """Embedding, layers and last norm.

    Args:
        d_model: width.
        n_layer: layers.
        d_intermediate: width of the MLP after every mixer; 0 for none.
        vocab_size: tokens.
        ssm_cfg: arguments of the mixers; "layer" is Mamba1 or Mamba2.
        attn_layer_idx: layers whose mixer is attention.
        attn_cfg: its arguments.
        norm_epsilon: added to the norms' variances.
        rms_norm: RMS norms instead of layer norms.
        initializer_cfg: arguments of the initialisation.
        fused_add_norm: whether sum and norm are one function.
        residual_in_fp32: whether the residual sum is float32.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ConfigError: without a vocabulary, or for sizes below 1.
    """

    def __init__(
        self,
        d_model: int,
        n_layer: int,
        d_intermediate: int = 0,
        vocab_size: int | None = None,
        ssm_cfg: dict[str, Any] | None = None,
        attn_layer_idx: list[int] | None = None,
        attn_cfg: dict[str, Any] | None = None,
        norm_epsilon: float = 1e-5,
        rms_norm: bool = False,
        initializer_cfg: dict[str, Any] | None = None,
        fused_add_norm: bool = False,
        residual_in_fp32: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if vocab_size is None:
            raise ConfigError(
                "MixerModel: vocab_size is missing; its place is after d_intermediate"
            )
        check_sizes("MixerModel", d_model=d_model, vocab_size=vocab_size)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.residual_in_fp32, self.fused_add_norm = residual_in_fp32, fused_add_norm
        self.embedding = nn.Embedding(vocab_size, d_model, **where)
        self.layers = nn.ModuleList(
            create_block(
                d_model,
                d_intermediate,
                ssm_cfg,
                attn_layer_idx,
                attn_cfg,
                norm_epsilon,
                rms_norm,
                residual_in_fp32,
                fused_add_norm,
                layer,
                **where,
            )
            for layer in range(n_layer)
        )
        norm: Any = RMSNorm if rms_norm else nn.LayerNorm
        self.norm_f = norm(d_model, eps=norm_epsilon, **where)
        residuals = 2 if d_intermediate else 1
        options: dict[str, Any] = {**(initializer_cfg or {}), "n_residuals_per_layer": residuals}
        self.apply(partial(_init_weights, n_layer=n_layer, **options))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """Returns the empty states of all layers by their numbers."""
        allocated = {}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Block)
            allocated[number] = layer.allocate_inference_cache(
                batch_size, max_seqlen, dtype, **kwargs
            )
        return allocated

    def forward(
        self, input_ids: Tensor, inference_params: Any = None, **mixer_kwargs: Any
    ) -> Tensor:
        """Maps tokens (B, L) to (B, L, D); refuses other ones by name."""
        check_tokens("MixerModel", input_ids)
        hidden, residual = embedded("MixerModel", self.embedding, input_ids), None
        for layer in self.layers:
            hidden, residual = layer(
                hidden, residual, inference_params=inference_params, **mixer_kwargs
            )
        if self.fused_add_norm:
            return add_norm(hidden, residual, self.norm_f, self.residual_in_fp32)[0]
        total = hidden if residual is None else hidden + residual
        return self.norm_f(total.to(self.norm_f.weight.dtype))


class MambaLMHeadModel(nn.Module, GenerationMixin):
    """The language model of the published checkpoints.

    Args:
        config: its sizes.
        initializer_cfg: arguments of the initialisation.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        config: MambaConfig,
        initializer_cfg: dict[str, Any] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        check_sizes("MambaConfig", pad_vocab_size_multiple=config.pad_vocab_size_multiple)
        vocabulary = config.vocab_size + -config.vocab_size % config.pad_vocab_size_multiple
        self.backbone = MixerModel(
            config.d_model,
            config.n_layer,
            config.d_intermediate,
            vocabulary,
            config.ssm_cfg,
            config.attn_layer_idx,
            config.attn_cfg,
            rms_norm=config.rms_norm,
            initializer_cfg=initializer_cfg,
            fused_add_norm=config.fused_add_norm,
            residual_in_fp32=config.residual_in_fp32,
            **where,
        )
        self.lm_head = nn.Linear(config.d_model, vocabulary, bias=False, **where)
        self.apply(partial(_init_weights, n_layer=config.n_layer, **(initializer_cfg or {})))
        self.tie_weights()

    def tie_weights(self) -> None:
        """Has the head share the embedding's weight, if the configuration says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> dict[int, Any]:
        """Returns the empty states of all layers by their numbers."""
        return self.backbone.allocate_inference_cache(batch_size, max_seqlen, dtype, **kwargs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: Any = None,
        num_last_tokens: int = 0,
        **mixer_kwargs: Any,
    ) -> CausalLMOutput:
        """Returns the logits.

        Args:
            input_ids: tokens (B, L).
            position_ids: accepted; the layers know their positions.
            inference_params: the states while generating.
            num_last_tokens: only of so many last positions; of all if 0 or less.
            **mixer_kwargs: handed to the mixers, such as ``seq_idx`` and ``cu_seqlens``.
        """
        hidden = self.backbone(input_ids, inference_params=inference_params, **mixer_kwargs)
        last = hidden[:, -num_last_tokens:] if num_last_tokens > 0 else hidden
        return CausalLMOutput(self.lm_head(last))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name: str,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> MambaLMHeadModel:
        """Returns the model of a folder, or of a name on the Hugging Face hub.

        Args:
            pretrained_model_name: the folder or name.
            device: of the parameters.
            dtype: of the parameters.
            **kwargs: further arguments of the model.

        Raises:
            DataError: for missing files, or ones that do not fit.
            ConfigError: if config.json is not of this model.
        """
        said = load_config_hf(pretrained_model_name)
        unknown = sorted(set(said) - {one.name for one in dataclasses.fields(MambaConfig)})
        if unknown:
            raise ConfigError(
                f"{pretrained_model_name}: config.json is not mamba-ssm's (it has "
                f"{', '.join(unknown[:3])}); load a folder of transformers with transformers"
            )
        model = cls(MambaConfig(**said), device=device, dtype=dtype, **kwargs)
        state = load_state_dict_hf(pretrained_model_name, device=device, dtype=dtype)
        if model.config.tie_embeddings and "backbone.embedding.weight" in state:
            state.setdefault("lm_head.weight", state["backbone.embedding.weight"])
        check_state_dict(model, state, pretrained_model_name)
        model.load_state_dict(state)
        return model

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes pytorch_model.bin and config.json into a folder."""
        folder = Path(save_directory)
        with atomic_path(folder / "pytorch_model.bin") as file:
            torch.save(self.state_dict(), file)
        with atomic_path(folder / "config.json") as file:
            file.write_text(json.dumps(dataclasses.asdict(self.config), indent=4))
