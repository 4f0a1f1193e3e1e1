"""The one residual backbone: layers of (norm → mixer) and, where asked, (norm → MLP), in any
pattern."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from longseq.core.checks import check_number, check_positive
from longseq.core.errors import ConfigError, did_you_mean
from longseq.core.mixers import Mixer, State, create_mixer
from longseq.core.mixers.base import mixer_class
from longseq.core.mixers.guard import StackCarry
from longseq.core.mixers.padding import real_positions, run_real
from longseq.core.mixers.pieces import in_pieces, piece_length, pointwise, runs_of
from longseq.core.mlp import MLPS
from longseq.core.norms import NORMS, normed

_POSITIONS = 1 << 16  # without gradients, a longer input goes through an MLP in such blocks


class Layer(nn.Module):
    """x + mixer(norm(x)), then, if it has an MLP, x + mlp(norm(x)).

    Args:
        mixer: the sequence mixer.
        mlp_ratio: hidden width of the MLP as a multiple of D; 0 for none.
        norm: one of ``NORMS``.
        dropout: on both branches.
        mlp: one of ``longseq.core.mlp.MLPS``.
        norm_eps: of the norms.
        mlp_kwargs: hyper-parameters of the MLP.
    """

    def __init__(
        self,
        mixer: Mixer,
        mlp_ratio: float,
        norm: str,
        dropout: float,
        mlp: str = "gelu",
        norm_eps: float = 1e-5,
        mlp_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        d_model = mixer.d_model
        settings = {"d_hidden": int(mlp_ratio * d_model), **(mlp_kwargs or {})}
        self.norm1 = NORMS[norm](d_model, eps=norm_eps)
        self.mixer = mixer
        self.mlp = MLPS[mlp](d_model, **settings) if mlp_ratio else None
        self.norm2 = NORMS[norm](d_model, eps=norm_eps) if mlp_ratio else None
        self.dropout = nn.Dropout(dropout)

    def _channel(self, x: Tensor) -> Tensor:
        if self.mlp is None or self.norm2 is None:
            return x
        if torch.is_grad_enabled() or x.ndim < 3 or x.shape[1] <= _POSITIONS:
            return x + self.dropout(self.mlp(normed(self.norm2, x)))
        y = torch.empty_like(x)
        for part, out in zip(x.split(_POSITIONS, 1), y.split(_POSITIONS, 1)):
            out.copy_(part + self.dropout(self.mlp(normed(self.norm2, part))))
        return y

    def forward(
        self, x: Tensor, state: State | None, segment_ids: Tensor | None
    ) -> tuple[Tensor, State]:
        """As ``Mixer.forward``, with the residual branches."""
        out = self.mixer(normed(self.norm1, x), state, segment_ids)
        if not (isinstance(out, tuple) and len(out) == 2):
            name = type(self.mixer).__name__
            raise ConfigError(
                f"{name}.forward must return (y, state), and returned {type(out).__name__}"
            )
        y, state = out
        if not torch.compiler.is_compiling() and y.shape != x.shape:
            raise ConfigError(
                f"{type(self.mixer).__name__}.forward must return y of the shape of x, "
                f"{tuple(x.shape)}, and returned {tuple(y.shape)}"
            )
        return self._channel(x + self.dropout(y)), state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """As ``Mixer.step``, with the residual branches."""
        y_t, state = self.mixer.step(normed(self.norm1, x_t), state)
        return self._channel(x_t + self.dropout(y_t)), state


def _pair(entry: object) -> tuple[str, dict[str, Any]] | None:
    """Returns an entry of a pattern as name and settings; None if it is neither a name nor a pair
    of both."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, Sequence) and len(entry) == 2:
        name, settings = entry
        if isinstance(name, str) and isinstance(settings, Mapping):
            return name, dict(settings)
    return None


def read_pattern(mixer: str | Sequence[str | Sequence[Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Returns a pattern as pairs of a mixer's name and the hyper-parameters of that layer alone.

    Args:
        mixer: a name, or a list whose entries are names or pairs (name, hyper-parameters).

    Raises:
        ConfigError: if it is neither, or empty, or has an entry that is neither a name nor a pair.
    """
    if not isinstance(mixer, (str, Sequence)):
        raise ConfigError(
            f"mixer is a name or a pattern of names, got {mixer!r}; a class of your own is "
            "registered under a name first: @register_mixer"
        )
    pattern: list[tuple[str, dict[str, Any]]] = []
    for entry in [mixer] if isinstance(mixer, str) else list(mixer):
        pair = _pair(entry)
        if pair is None:
            raise ConfigError(
                "an entry of a pattern of mixers is a name or a pair of name and "
                "hyper-parameters, such as "
                f'["local_attention", {{"window": 64}}]; got {entry!r}'
            )
        pattern.append(pair)
    if not pattern:
        raise ConfigError("the pattern of mixers is empty")
    return pattern


def _place(name: str, index: int, n_layers: int) -> dict[str, Any]:
    """Returns those of ``depth`` and ``n_blocks`` that the mixer's constructor takes."""
    accepted = inspect.signature(mixer_class(name).__init__).parameters
    place = {"depth": index / max(n_layers - 1, 1), "n_blocks": n_layers}
    return {key: value for key, value in place.items() if key in accepted}


class Backbone(nn.Module):
    """A stack of residual layers around sequence mixers, (B, L, D) to (B, L, D), with their three
    modes.

    Args:
        d_model: width D.
        n_layers: number of layers.
        mixer: a mixer's name, or a pattern of names that is repeated to fill the layers, for
            example ``["mamba2"] * 7 + ["attention"]``. An entry of a pattern may be a pair (name,
            hyper-parameters) with settings of its own: ``[("local_attention", {"window": 64}),
            "mamba"]``.
        mixer_kwargs: hyper-parameters of the mixer; for a pattern, a mapping from name to
            hyper-parameters, which an entry's own settings overrule.
        mlp_ratio: hidden width of the MLPs as a multiple of D; 0 for none, as in Mamba. A mapping
            from mixer to ratio gives only some layers an MLP: ``{"slstm": 1.3}`` with
            ``mlp="geglu"`` and ``norm="layer_nobias"`` makes xLSTM's stack (arXiv 2405.04517,
            figures 10 and 11).
        norm: "rms", "layer", "layer_nobias", or "rms_offset", whose scale is kept less 1.
        dropout: on every residual branch.
        mlp: "gelu", two linear maps with a GELU between, or gated ones without biases: "geglu",
            "geglu_tanh" with GELU's approximation, "swiglu" with SiLU.
        norm_eps: added to the mean square in every norm.
        mlp_kwargs: hyper-parameters of the MLPs beside the ratio's: see ``longseq.core.mlp``.
        residual_in_fp32: whether the residual stream is kept in float32 where the parameters are
            of half precision.

    A mixer that takes its place in the stack (``depth``, from 0 to 1) or the stack's height
    (``n_blocks``) for its initial values gets them, unless ``mixer_kwargs`` says otherwise.

    Raises:
        ConfigError: for unknown names and sizes that do not fit.
    """

    def __init__(
        self,
        d_model: int,
        n_layers: int,
        mixer: str | Sequence[str | Sequence[Any]] = "mamba",
        mixer_kwargs: Mapping[str, Any] | None = None,
        mlp_ratio: float | Mapping[str, float] = 0.0,
        norm: Literal["rms", "layer", "layer_nobias", "rms_offset"] = "rms",
        dropout: float = 0.0,
        mlp: Literal["gelu", "geglu", "geglu_tanh", "swiglu"] = "gelu",
        norm_eps: float = 1e-5,
        mlp_kwargs: Mapping[str, Any] | None = None,
        residual_in_fp32: bool = False,
    ) -> None:
        super().__init__()
        check_positive("d_model", d_model)
        check_positive("n_layers", n_layers)
        if norm not in NORMS:
            raise ConfigError(f"no norm named {norm!r}; {did_you_mean(norm, NORMS)}")
        if mlp not in MLPS:
            raise ConfigError(f"no MLP named {mlp!r}; {did_you_mean(mlp, MLPS)}")
        pattern = read_pattern(mixer)
        if len(pattern) > n_layers:
            raise ConfigError(
                f"a pattern of {len(pattern)} mixers needs as many layers at least, got n_layers "
                f"{n_layers}; a shorter pattern is repeated"
            )
        names = [name for name, _ in pattern]
        if isinstance(mlp_ratio, Mapping):
            for name in mlp_ratio:
                if name not in names:
                    raise ConfigError(
                        f"mlp_ratio names a mixer of the pattern: {did_you_mean(name, names)}"
                    )
            ratios = dict(mlp_ratio)
        else:
            ratios = dict.fromkeys(names, check_number("mlp_ratio", mlp_ratio))
        if any(ratio < 0 for ratio in ratios.values()) or not 0 <= dropout < 1:
            raise ConfigError(
                f"mlp_ratio must be at least 0 and dropout in [0, 1), got {mlp_ratio} and {dropout}"
            )
        if mixer_kwargs is not None and not isinstance(mixer_kwargs, Mapping):
            raise ConfigError(
                "mixer_kwargs is a mapping; settings of single layers stand in the pattern itself: "
                f'[["{names[0]}", {{…}}], …]'
            )
        kwargs = dict(mixer_kwargs or {})
        if not isinstance(mixer, str):
            for name in kwargs:
                if name not in names:
                    raise ConfigError(
                        f"mixer_kwargs of a pattern are per mixer: {did_you_mean(name, names)}"
                    )
        layers = []
        for i in range(n_layers):
            name, alone = pattern[i % len(pattern)]
            shared = kwargs if isinstance(mixer, str) else kwargs.get(name, {})
            made = create_mixer(name, d_model, **{**_place(name, i, n_layers), **shared, **alone})
            ratio = ratios.get(name, 0.0)
            layers.append(Layer(made, ratio, norm, dropout, mlp, norm_eps, mlp_kwargs))
        self.d_model, self.residual_in_fp32 = d_model, residual_in_fp32
        self.layers = nn.ModuleList(layers)
        self.norm_f = NORMS[norm](d_model, eps=norm_eps)
        self._scale_residual_branches()

    def _scale_residual_branches(self) -> None:
        """Divides the last map of every residual branch by √(number of branches), as GPT-2 does."""
        branches = sum(2 if layer.mlp is not None else 1 for layer in self.residual_layers())
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith((".out_proj.weight", ".o_proj.weight", ".mlp.fc2.weight")):
                    parameter.div_(branches**0.5)

    def residual_layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]

    @property
    def causal(self) -> bool:
        """Whether every mixer is causal."""
        return all(layer.mixer.causal for layer in self.residual_layers())

    @property
    def bounded_state(self) -> bool:
        """Whether what every mixer carries stops growing; see ``Mixer.bounded_state``."""
        return all(layer.mixer.bounded_state for layer in self.residual_layers())

    def _residual(self, x: Tensor) -> Tensor:
        wide = self.residual_in_fp32 and x.dtype.itemsize == 2
        return x.float() if wide else x

    def join_states(self, states: Sequence[list[State]]) -> list[State]:
        """Returns the states of several batches as that of one; see ``Mixer.join_states``."""
        layers = zip(self.residual_layers(), zip(*states))
        return [layer.mixer.join_states(each) for layer, each in layers]

    def forward(
        self,
        x: Tensor,
        states: list[State] | None = None,
        segment_ids: Tensor | None = None,
        keep_states: bool = True,
        *,
        attention_mask: Tensor | None = None,
        lengths: Tensor | Sequence[int] | None = None,
    ) -> tuple[Tensor, list[State]]:
        """Runs a whole sequence or the next chunk of one.

        In evaluation without gradients, layers whose mixers carry a bounded state run a long input
        in pieces of time (``core/mixers/pieces.py``), in the memory of input, output and a piece.

        Args:
            x: embedded input (B, L, D).
            states: one state per layer, from the previous chunk; None at the start.
            segment_ids: see ``Mixer.forward``.
            keep_states: whether states are returned; those of long convolutions are as long as the
                input.
            attention_mask: bool or integer (B, L), 0 at padding; see ``Mixer``.
            lengths: integers (B,), the number of real positions of each row, its first ones.

        Returns:
            The normalised output (B, L, D), zero at padding, and the states after the last (real)
            position (none without ``keep_states``).

        Raises:
            ArgumentError: for a mask or lengths that do not fit.
        """
        if attention_mask is not None or lengths is not None:
            real = real_positions("Backbone", x, attention_mask, lengths)
            if x.shape[0] and x.shape[1]:
                run = partial(self.forward, keep_states=keep_states)
                layers = self.residual_layers()
                carry = StackCarry(layer.mixer for layer in layers if keep_states or states)
                return run_real(run, carry, x, states, segment_ids, real)
        layers = self.residual_layers()
        size = piece_length(self, x, self.d_model, segment_ids)
        if size is None or not any(layer.mixer.bounded_state for layer in layers):
            x, carried = self._layers(layers, keep_states, x, states, segment_ids)
            return normed(self.norm_f, x), carried
        carried = []
        # Layers side by side that carry a bounded state go through a piece together.
        for bounded, low, high in runs_of(layer.mixer.bounded_state for layer in layers):
            before = None if states is None else states[low:high]
            run = partial(self._layers, layers[low:high], bounded or keep_states)
            if bounded:
                carry = StackCarry(layer.mixer for layer in layers[low:high])
                x, after = in_pieces(run, carry, x, before, segment_ids, size)
            else:
                x, after = run(x, before, segment_ids)
            carried += after if keep_states else []
        return pointwise(partial(normed, self.norm_f), x, size), carried

    def _layers(
        self,
        layers: Sequence[Layer],
        keep_states: bool,
        x: Tensor,
        states: list[State] | None,
        segment_ids: Tensor | None,
    ) -> tuple[Tensor, list[State]]:
        """Runs some layers over the residual stream."""
        x = self._residual(x)
        carried: list[State] = []
        for i, layer in enumerate(layers):
            x, state = layer(x, None if states is None else states[i], segment_ids)
            if keep_states:
                carried.append(state)
            del state
        return x, carried

    def step(self, x_t: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Runs one position: x_t (B, D).

        Returns:
            The normalised output (B, D) and the new states.
        """
        x_t = self._residual(x_t)
        carried: list[State] = []
        for layer, state in zip(self.residual_layers(), states):
            x_t, state = layer.step(x_t, state)
            carried.append(state)
        return normed(self.norm_f, x_t), carried

    def init_states(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> list[State]:
        """Returns the states of all layers at the start of a sequence; see ``Mixer.init_state``."""
        return [layer.mixer.init_state(batch, device, dtype) for layer in self.residual_layers()]

    def state_size(self, length: int) -> int:
        """Returns the number of values that one row carries after ``length`` positions."""
        return sum(layer.mixer.state_size(length) for layer in self.residual_layers())
