"""What the layers with a memory optimised at test time share: the inner model, its gradients, and
the updates of a chunk as products of matrices."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from longseq.core.checks import check_divisible, check_positive
from longseq.core.errors import ConfigError
from longseq.core.mixers._attention import chunk_starts, positions_in_pack
from longseq.core.mixers._delta import DeltaMixer, normalised
from longseq.core.mixers.base import State, recurrent_dtype, segment_resets
from longseq.core.ops.backends import Backend
from longseq.core.ops.precision import autocast_off, bounded

_EPS = 1e-6  # added to the square of a norm that is divided by
_QUINTIC = (3.4445, -4.7750, 2.0315)  # of Muon's iteration


class MemoryMixer(DeltaMixer):
    """A memory M, linear or a perceptron, that is trained on the keys and values of the sequence.

        S_t = η_t S_{t-1} - θ_t Σ_i γ_i ∇½‖M(φ(k_i)) - v_i‖²  over  t - c < i ≤ t
        M_t = (1 - α_t) M_{t-1} + S_t,   y_t = W_o RMSNorm(M_t(φ(q_t)))

    Gradients are taken at the memory before the first position of the chunk that t is in. Inside a
    chunk they are therefore known at once, and every M_t is a weighted sum of them, of M and of S
    before the chunk: no M_t is ever formed, but M_t(q_t) is a masked product of queries and keys.
    Only ``orthogonal`` steps, which are not linear in S_t, need S_t itself.

    Args:
        d_model: width D.
        n_heads: number of heads H; a head's keys and values are D / H wide.
        layers: of M: 1 for a matrix, 2 for M(k) = k + W_2 SiLU(W_1 φ(k)).
        d_hidden: hidden width of a deep M; None for twice a head's.
        window: c.
        degree: of φ: 1 for the keys themselves, 2 for their products in pairs too.
        orthogonal: iterations of Newton and Schulz that make a step of S_t; 0 for S_t itself.
        chunk: positions whose gradients are taken at the same memory; part of the definition.
        max_step: bound of θ; None for min(1, 2 (1 - η_t)) / (``chunk`` · c), where
            ``orthogonal`` is 0, else 1 / (``chunk`` · c); see ``_bounded``.
        conv_size: taps of the convolutions of queries, keys and values.
        norm_eps: added to the mean square in the norm.
        backend: of the convolutions; see ``longseq.core.ops.backends``.

    Raises:
        ConfigError: if a value is out of range.
    """

    closed_length = "it goes from chunk to chunk; export it for one length"

    def __init__(
        self,
        d_model: int,
        n_heads: int = 4,
        layers: int = 1,
        d_hidden: int | None = None,
        window: int = 8,
        degree: int = 2,
        orthogonal: int = 0,
        chunk: int = 8,
        max_step: float | None = None,
        conv_size: int = 4,
        norm_eps: float = 1e-5,
        backend: Backend = "auto",
    ) -> None:
        d_model = check_positive("d_model", d_model)
        width = check_divisible("d_model", d_model, "n_heads", n_heads)
        super().__init__(d_model, n_heads, width, width, 1, conv_size, False, False, chunk, backend)
        for name, value in (("layers", layers), ("degree", degree)):
            if value not in (1, 2):
                raise ConfigError(f"{name} must be 1 or 2, got {value!r}")
        if orthogonal < 0:
            raise ConfigError(f"orthogonal steps must be at least 0, got {orthogonal!r}")
        self.window = check_positive("window", window)
        self.max_step = 1 / (chunk * window) if max_step is None else float(max_step)
        self.bound_momentum = max_step is None and orthogonal == 0
        if not self.max_step > 0:
            raise ConfigError(f"max_step must be above 0, got {max_step!r}")
        self.orthogonal = orthogonal
        # Rows: η, α and, if gradients of several positions are weighed, γ.
        self.gates = 2 if window == 1 else 3
        self.gate_proj = nn.Linear(d_model, self.gates * n_heads)
        with torch.no_grad():  # a momentum of a few positions, and little forgetting
            self.gate_proj.bias.view(self.gates, -1).copy_(
                torch.tensor([1.0, -4.0, 1.0])[: self.gates, None]
            )
        features = width
        if degree == 2:
            features += width * (width + 1) // 2
        self.degree_logits = nn.Parameter(torch.zeros(n_heads, 2)) if degree == 2 else None
        sizes = [features, width]
        if layers == 2:
            hidden = 2 * width if d_hidden is None else d_hidden
            sizes.insert(1, check_positive("d_hidden", hidden))
        self.memory = nn.ParameterList(
            torch.zeros(n_heads, high, low)
            if layers == 1
            else torch.randn(n_heads, high, low) * low**-0.5
            for low, high in pairwise(sizes)
        )
        self.o_norm = nn.RMSNorm(width, eps=norm_eps)

    def init_state(
        self, batch: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Returns, for each layer of M, its weights before the chunk, its weights and their
        momentum (B, H, out, in); the convolutions' last inputs; how many positions there have been
        (B,); and the last c - 1 keys, values and their weights (B, c - 1, H, ...) where c is not
        1."""
        device, dtype = self._where(device, dtype)
        state: State = {"conv": super().init_state(batch, device, dtype)["conv"]}
        dtype = recurrent_dtype(dtype)
        for i, weight in enumerate(self.memory):
            start = weight.to(device, dtype).expand(batch, -1, -1, -1)
            state[f"start{i}"], state[f"memory{i}"] = start, start
            state[f"momentum{i}"] = torch.zeros_like(start)
        if self.window > 1:
            shape = (batch, self.window - 1, self.n_heads, self.d_key)
            state["k"] = torch.zeros(shape, device=device, dtype=dtype)
            state["v"] = torch.zeros_like(state["k"])
            state["gamma"] = torch.zeros(shape[:-1], device=device, dtype=dtype)
        state["seen"] = torch.zeros(batch, device=device, dtype=torch.long)
        return state

    def forward(
        self, x: Tensor, state: State | None = None, segment_ids: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Mixes a whole sequence or the next chunk of one; see ``Mixer.forward``.

        Raises:
            ArgumentError: under a compiler or a transform with a state or packed sequences.
            ConfigError: if it is exported for an open length.
        """
        resets, begins = segment_resets(segment_ids), state is None
        state = self.init_state(len(x), x.device, x.dtype) if state is None else state
        q, k, v, theta, conv = self._project(x, state, resets)
        gates = self.gate_proj(x)
        positions = positions_in_pack(resets, state["seen"], x.shape[1])
        cuts = chunk_starts(
            type(self).__name__, x, positions, self.chunk_size, begins and resets is None
        )
        after: State = {"conv": conv, "seen": positions[:, -1] + 1}
        with autocast_off(x):
            dtype = recurrent_dtype(x.dtype)
            q, k, v, theta, gates = (t.to(dtype) for t in (q, k, v, theta, gates))
            eta, alpha, *rest = gates.unflatten(-1, (self.gates, -1)).unbind(2)
            gamma = torch.sigmoid(rest[0]) if rest else torch.ones_like(eta)
            if self.window > 1:
                k, v, gamma = (
                    torch.cat([state[key].to(dtype), t], 1)
                    for key, t in (("k", k), ("v", v), ("gamma", gamma))
                )
                kept = k.shape[1] - self.window + 1
                after |= {"k": k[:, kept:], "v": v[:, kept:], "gamma": gamma[:, kept:]}
            # (B, H, L) and (B, H, L, P) from here on.
            sequences = [t.transpose(1, 2) for t in (q, k, v, gamma)]
            sequences += [
                t.transpose(1, 2)
                for t in (self._bounded(theta, eta), logsigmoid(eta), logsigmoid(-alpha))
            ]
            o, layers = self._run(sequences, state, positions, resets, cuts)
        after |= layers
        return self.o_proj(normalised(o.to(x.dtype), self.o_norm).flatten(2)), after

    def _bounded(self, theta: Tensor, eta: Tensor) -> Tensor:
        """Returns θ of its gate and the logit of η, (B, L, H) each.

        Equal keys in a chunk of T positions see the errors before it, and the momentum goes on for
        1 / (1 - η) positions. By the eigenvalues of that linear recurrence, the memory converges
        for every η and T where c θ T ≤ min(1, 2 (1 - η)), without any forgetting.
        """
        theta = self.max_step * theta
        if self.bound_momentum:
            theta = theta * (2 * torch.sigmoid(-eta)).clamp(max=1.0)
        return theta

    def _run(
        self,
        sequences: list[Tensor],
        state: State,
        positions: Tensor,
        resets: Tensor | None,
        cuts: list[int],
    ) -> tuple[Tensor, State]:
        """Runs pieces in which no row's chunk begins but at their first position."""
        q, k, v, gamma, theta, log_eta, log_keep = sequences
        names = [(f"start{i}", f"memory{i}", f"momentum{i}") for i in range(len(self.memory))]
        start, memory, momentum = (
            [state[name].to(q.dtype) for name in column] for column in zip(*names)
        )
        outputs, back = [], self.window - 1
        for lo, hi in pairwise([*cuts, q.shape[2]]):
            if resets is not None:
                fresh = resets[:, lo].view(-1, 1, 1, 1)
                memory = [
                    torch.where(fresh, own.to(m.dtype), m) for own, m in zip(self.memory, memory)
                ]
                momentum = [m.masked_fill(fresh, 0.0) for m in momentum]
            new = (positions[:, lo] % self.chunk_size == 0).view(-1, 1, 1, 1)
            start = [torch.where(new, m, s) for m, s in zip(memory, start)]
            keys, values = k[:, :, lo : hi + back], v[:, :, lo : hi + back]
            inputs, errors = self._gradients(keys, values, start)
            taken = self._window(gamma[:, :, lo : hi + back], positions[:, lo:hi])
            coefficients = (theta[..., lo:hi], log_eta[..., lo:hi], log_keep[..., lo:hi], taken)
            step = self._orthogonal_piece if self.orthogonal else self._piece
            y, memory, momentum = step(
                q[:, :, lo:hi], inputs, errors, memory, momentum, coefficients
            )
            outputs.append(y)
        last: State = {}
        for column, tensors in zip(zip(*names), (start, memory, momentum)):
            last |= dict(zip(column, tensors))
        return torch.cat(outputs, 2).transpose(1, 2), last

    def _features(self, k: Tensor) -> Tensor:
        """Returns φ(k) of norm 1 for k of norm 1, (B, H, N, F): φ(q)·φ(k) = a q·k + b (q·k)²."""
        if self.degree_logits is None:
            return k
        a, b = self.degree_logits.to(k.dtype).softmax(-1).sqrt()[..., None, None].unbind(1)
        i, j = torch.triu_indices(k.shape[-1], k.shape[-1], device=k.device)
        factor = (2 - (i == j).to(k.dtype)).sqrt()  # so that pairs(q)·pairs(k) = (q·k)²
        pairs = factor * k[..., i] * k[..., j]
        return torch.cat([a * k, b * pairs], -1)

    def _gradients(
        self, k: Tensor, v: Tensor, weights: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Returns each layer's inputs and the losses' gradients by its outputs, (B, H, N, ·): their
        outer products are the gradients by its weights."""
        inputs, slopes = [self._features(k)], []
        for weight in weights[:-1]:
            z = inputs[-1] @ weight.mT
            gate = torch.sigmoid(z)
            inputs.append(z * gate)
            slopes.append(gate * (1 + z * (1 - gate)))
        found = inputs[-1] @ weights[-1].mT
        errors = [(found if len(weights) == 1 else found + k) - v]
        for weight, slope in zip(weights[:0:-1], slopes[::-1]):
            errors.insert(0, (errors[0] @ weight) * slope)
        return inputs, errors

    def _window(self, gamma: Tensor, positions: Tensor) -> Tensor:
        """Returns γ_i where position t takes key i's gradient, else 0, (B, H, T, c - 1 + T)."""
        place = torch.arange(gamma.shape[-1], device=gamma.device)
        distance = place[self.window - 1 :, None] - place
        reach = positions.clamp(max=self.window - 1)[:, None, :, None]
        return gamma.unsqueeze(-2).masked_fill((distance < 0) | (distance > reach), 0.0)

    def _piece(
        self,
        q: Tensor,
        inputs: list[Tensor],
        errors: list[Tensor],
        memory: list[Tensor],
        momentum: list[Tensor],
        coefficients: tuple[Tensor, ...],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Returns M_t(q_t) (B, H, T, P), and the last weights and momenta."""
        theta, log_eta, log_keep, taken = coefficients
        carry, keep = _decays(log_eta), _decays(log_keep)
        through, stay = log_eta.cumsum(-1).exp(), log_keep.cumsum(-1).exp()
        steps = carry @ (theta.unsqueeze(-1) * taken)  # of S_t, by gradients
        total = keep @ steps  # of M_t
        from_momentum = keep @ through.unsqueeze(-1)  # (B, H, T, 1)
        y = self._features(q)
        for i, (a, error, weight, moved) in enumerate(zip(inputs, errors, memory, momentum)):
            out = stay.unsqueeze(-1) * (y @ weight.mT) + from_momentum * (y @ moved.mT)
            out = out - ((y @ a.mT) * total) @ error
            y = torch.nn.functional.silu(out) if i + 1 < len(memory) else out
        y = y if len(memory) == 1 else y + q
        ends = (stay[..., -1, None, None], from_momentum[..., -1:, :], through[..., -1, None, None])
        last, after = [], []
        for a, error, weight, moved in zip(inputs, errors, memory, momentum):
            last.append(ends[0] * weight + ends[1] * moved - _sum(error, total[..., -1, :], a))
            after.append(ends[2] * moved - _sum(error, steps[..., -1, :], a))
        return y, last, after

    def _orthogonal_piece(
        self,
        q: Tensor,
        inputs: list[Tensor],
        errors: list[Tensor],
        memory: list[Tensor],
        momentum: list[Tensor],
        coefficients: tuple[Tensor, ...],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The same where M_t = (1 - α_t) M_{t-1} + θ_t NewtonSchulz(S_t)."""
        theta, log_eta, log_keep, taken = coefficients
        keep = _decays(log_keep) * theta.unsqueeze(-2)
        through, stay = log_eta.cumsum(-1).exp(), log_keep.cumsum(-1).exp()
        steps = _decays(log_eta) @ taken
        y, last, after = self._features(q), [], []
        for i, (a, error, weight, moved) in enumerate(zip(inputs, errors, memory, momentum)):
            sums = (error.unsqueeze(2) * steps.unsqueeze(-1)).mT @ a.unsqueeze(2)
            each = through[..., None, None] * moved.unsqueeze(2) - sums  # S_t
            ways = (keep @ newton_schulz(each, self.orthogonal).flatten(3)).view_as(each)
            weights = stay[..., None, None] * weight.unsqueeze(2) + ways  # M_t
            out = (weights @ y.unsqueeze(-1)).squeeze(-1)
            y = torch.nn.functional.silu(out) if i + 1 < len(memory) else out
            last.append(weights[:, :, -1])
            after.append(each[:, :, -1])
        return (y if len(memory) == 1 else y + q), last, after


def _sum(error: Tensor, weights: Tensor, a: Tensor) -> Tensor:
    """Returns the weighted sum of outer products, (B, H, out, in)."""
    return (error * weights.unsqueeze(-1)).mT @ a


def _decays(log_decay: Tensor) -> Tensor:
    """Returns exp(g_{s+1} + … + g_t) for s ≤ t, else 0, (..., T, T), each sum of its own terms."""
    length = log_decay.shape[-1]
    below = torch.ones(length, length, device=log_decay.device, dtype=torch.bool).tril(-1)
    terms = log_decay.unsqueeze(-1).expand(*log_decay.shape, length).masked_fill(~below, 0.0)
    return terms.cumsum(-2).exp().tril()


def newton_schulz(x: Tensor, iterations: int) -> Tensor:
    """Returns about U Vᵀ of the singular value decomposition of each matrix (..., m, n), by Muon's
    iteration X ← a X + (b A + c A²) X, A = X Xᵀ, from X / ‖X‖.

    Args:
        x: matrices.
        iterations: 5 bring the singular values between 0.7 and 1.2 or so.
    """
    a, b, c = _QUINTIC
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = bounded(x, (-2, -1))
    x = x * torch.rsqrt(x.square().sum((-2, -1), keepdim=True) + _EPS)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
