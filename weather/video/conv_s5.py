"""ConvS5: a convolutional state-space layer for sequences of 2-D fields."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.core.checks import check_choice, check_even, check_positive
from longseq.core.errors import ArgumentError, ConfigError
from longseq.core.mixers import State
from longseq.core.ops.linear_scan import linear_scan
from longseq.core.ops.s4_kernel import as_complex, discretise, wide
from longseq.core.ops.ssm_init import log_uniform, normal_part, perturb_then_diagonalise
from longseq.weather.video.periodic import Edges, conv2d, wrap

Init = Literal["legs", "ptd"]
_CLIPPED = -1e-4


class ConvS5(nn.Module):
    """Convolutional S5 (arXiv 2310.19694): (B, L, U, H, W) to (B, L, U, H, W).

    Every pixel has a diagonal complex state of P dimensions that is its own; space enters by
    convolutions:

        x_t = e^{ΛΔ} ⊙ x_{t-1} + (e^{ΛΔ} - 1)/Λ ⊙ (B ∗ u_t),    y_t = 2 Re(C ∗ x_t) + D ∗ u_t.

    All frames go through the convolutions at once and the states through ``linear_scan``, channels
    last: so the convolutions' results are the scan's operands as they lie.
    Parameters have the published layout: ``Lambda_re``, ``Lambda_im`` (P), ``B`` (P, U·k², 2) in
    the order (P, U, k, k), ``C`` (k, k, P, U, 2), ``log_step`` (P, 1).
    The state is "ssm": complex (B, P, H, W), whatever the number of frames.

    Args:
        channels: U.
        d_state: real state dimensions of a pixel, even: P = d_state / 2 conjugate pairs.
        kernel: side k of the kernels of B, C and D; odd.
        read_kernel: side of C's, if another; odd. With 1 a state is read where it lies.
        blocks: number of HiPPO blocks along the diagonal at the start; divides d_state into even
            parts.
        init: "legs" is the normal part of HiPPO-LegS, "ptd" LegS after a perturbation.
        dt_min: shortest time step at the start.
        dt_max: longest time step at the start.
        clip_eigs: whether to hold Re Λ at or below -1e-4, for unbounded sequences.
        edges: what lies beyond a frame: "zeros", or its other side on a "circular" plane.

    Raises:
        ConfigError: for a wrong hyper-parameter.
    """

    ssm_parameters = ("Lambda_re", "Lambda_im", "B", "log_step")
    # As the real convolutions that they are: 2P outputs of U·k² inputs, U of 2P·k².
    filter_axes = {"B": ((0, 2), (1,)), "C": ((3,), (2, 4, 0, 1))}

    def __init__(
        self,
        channels: int,
        d_state: int = 64,
        kernel: int = 3,
        blocks: int = 1,
        init: Init = "legs",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        clip_eigs: bool = True,
        edges: Edges = "zeros",
        read_kernel: int | None = None,
    ) -> None:
        super().__init__()
        self.edges = check_choice("edges", edges, Edges)
        self.channels, half = check_positive("channels", channels), check_even("d_state", d_state)
        check_choice("init", init, Init)
        self.read_kernel = kernel if read_kernel is None else read_kernel
        for name, side in (("kernel", kernel), ("read_kernel", self.read_kernel)):
            if check_positive(name, side) % 2 == 0:
                raise ConfigError(f"{name} must be odd, got {side}")
        if d_state % check_positive("blocks", blocks):
            raise ConfigError(f"blocks ({blocks}) must divide d_state ({d_state})")
        check_even("d_state / blocks", d_state // blocks)
        self.n_complex, self.kernel, self.clip_eigs = half, kernel, clip_eigs
        form = (
            normal_part(d_state // blocks)
            if init == "legs"
            else perturb_then_diagonalise(d_state // blocks)
        )
        v, v_inverse = (
            torch.block_diag(*[form.v] * blocks),
            torch.block_diag(*[form.v_inverse] * blocks),
        )
        eigenvalues = form.eigenvalues.repeat(blocks)
        self.Lambda_re = nn.Parameter(eigenvalues.real.float())
        self.Lambda_im = nn.Parameter(eigenvalues.imag.float())
        taps = kernel * kernel
        # He's variance for the convolutions that the real matrices would be, then into the
        # eigenbasis.
        b = (
            torch.randn(d_state, channels * taps, dtype=torch.float64)
            * (2 / (channels * taps)) ** 0.5
        )
        self.B = nn.Parameter(_as_real(v_inverse @ b.to(v.dtype)))
        side = self.read_kernel
        c = (
            torch.randn(side, side, channels, d_state, dtype=torch.float64)
            * (2 / (d_state * side * side)) ** 0.5
        )
        self.C = nn.Parameter(_as_real((c.to(v.dtype) @ v).transpose(2, 3)))
        self.D = nn.Conv2d(channels, channels, kernel, padding=self._zeros(kernel), bias=False)
        self.log_step = nn.Parameter(log_uniform((half, 1), dt_min, dt_max))
        self._held: dict[torch.dtype, tuple[Tensor, Tensor, Tensor]] | None = None

    def system(self) -> tuple[Tensor, Tensor]:
        """Returns the discrete transition (P) and input kernel (P, U, k, k), complex, in
        float64."""
        real = wide(self.Lambda_re)
        eigenvalues = torch.complex(
            real.clamp(max=_CLIPPED) if self.clip_eigs else real, wide(self.Lambda_im)
        )
        a, factor = discretise(eigenvalues, wide(self.log_step)[:, 0].exp(), "zoh")
        b = factor.unsqueeze(1) * as_complex(self.B)
        return a, b.unflatten(1, (self.channels, self.kernel, self.kernel))

    def _zeros(self, kernel: int) -> int:
        """Returns the points of zeros that a convolution puts around what ``_around`` returns."""
        return 0 if self.edges == "circular" else kernel // 2

    def _around(self, x: Tensor, kernel: int) -> Tensor:
        """Returns fields (N, U, H, W), on a circular plane with its other side around them."""
        return wrap(x, kernel // 2) if self.edges == "circular" else x

    def _kernels(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the transition (P), and the real convolutions that take frames in and states out,
        in a dtype: (2P + U, U, k, k), of which the first 2P make the complex numbers' real and
        imaginary parts in turn and the others are D's, and (U, 2P, k, k)."""
        if self._held is not None and dtype in self._held:
            return self._held[dtype]
        a, b = self.system()
        pairs = torch.view_as_real(b).to(dtype).permute(0, 4, 1, 2, 3).flatten(0, 1)
        c = 2 * torch.view_as_real(as_complex(self.C).conj().resolve_conj()).to(dtype)
        # Two convolutions would read the frames twice, and each is too small to be quick.
        made = (
            a,
            torch.cat([pairs, self.D.weight.to(dtype)]),
            c.permute(3, 2, 4, 0, 1).flatten(1, 2),
        )
        if self._held is not None:
            self._held[dtype] = made
        return made

    def _enter(self, weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns B ∗ u, complex (N, H, W, P), and D ∗ u (N, U, H, W), for frames of
        ``_around``."""
        made, passed = F.conv2d(u, weight, padding=self._zeros(self.kernel)).split(
            [2 * self.n_complex, self.channels], 1
        )
        made = made.permute(0, 2, 3, 1).unflatten(3, (self.n_complex, 2))
        made = made.to(torch.promote_types(made.dtype, torch.float32))
        return torch.view_as_complex(made.contiguous()), passed

    def _read(self, weight: Tensor, x: Tensor, passed: Tensor) -> Tensor:
        """Returns 2 Re(C ∗ x) + D ∗ u for states (N, H, W, P) and D ∗ u."""
        parts, side = torch.view_as_real(x).flatten(3).to(passed.dtype), self.read_kernel
        if side == 1:
            return F.linear(parts, weight[:, :, 0, 0]).permute(0, 3, 1, 2) + passed
        parts = self._around(parts.permute(0, 3, 1, 2), side)
        return F.conv2d(parts, weight, padding=self._zeros(side)) + passed

    def forward(self, u: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Runs a whole sequence of frames, or the next chunk of one.

        Args:
            u: frames (B, L, U, H, W).
            state: after the chunk before; None at the start.

        Returns:
            Frames of the same shape, and the state after the last one.

        Raises:
            ArgumentError: for another shape.
        """
        if u.dim() != 5 or u.shape[2] != self.channels or not u.shape[1]:
            raise ArgumentError(
                f"ConvS5: frames must be (batch, length ≥ 1, {self.channels}, height, width), "
                f"got {tuple(u.shape)}"
            )
        if u.shape[1] == 1 and state is not None:
            y, state = self.step(u[:, 0], state)
            return y[:, None], state
        batch, length, _, height, width = u.shape
        flat = u.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        flat = self._around(flat, self.kernel)
        a, inward, outward = self._kernels(flat.dtype)
        entered, passed = self._enter(inward, flat)
        # (P) for every pixel; batch and time stay unmaterialised in the scan.
        decay = a.to(entered.dtype).expand(height * width, -1).reshape(1, 1, -1)
        before = None if state is None else state["ssm"].permute(0, 2, 3, 1).flatten(1)
        states, last = linear_scan(decay, entered.view(batch, length, -1), before)
        y = self._read(outward, states.view(entered.shape), passed)
        last = last.unflatten(1, entered.shape[1:]).permute(0, 3, 1, 2)
        return y.unflatten(0, (batch, length)), {"ssm": last}

    def step(self, u_t: Tensor, state: State) -> tuple[Tensor, State]:
        """Runs one frame (B, U, H, W)."""
        u_t = u_t.contiguous(memory_format=torch.channels_last)
        u_t = self._around(u_t, self.kernel)
        a, inward, outward = self._kernels(u_t.dtype)
        entered, passed = self._enter(inward, u_t)
        x = a.to(state["ssm"].dtype) * state["ssm"].permute(0, 2, 3, 1) + entered
        return self._read(outward, x, passed), {"ssm": x.permute(0, 3, 1, 2)}

    def init_state(self, batch: int, height: int, width: int) -> State:
        """Returns the state at the start of a sequence: zeros (B, P, H, W)."""
        kind = self.D.weight.dtype.to_complex()
        return {
            "ssm": torch.zeros(
                batch, self.n_complex, height, width, dtype=kind, device=self.D.weight.device
            )
        }


@contextmanager
def held_systems(model: nn.Module) -> Iterator[None]:
    """Has every ``ConvS5`` of a model make its kernels once for all calls inside, where parameters
    do not change: a frame alone costs less than they do.

    Args:
        model: that holds them.
    """
    cores = [one for one in model.modules() if isinstance(one, ConvS5)]
    for core in cores:
        core._held = {}
    try:
        yield
    finally:
        for core in cores:
            core._held = None


class ResidualBlock(nn.Module):
    """x → norm(x + resnet(gelu(core(x)))), every norm within one frame: post-norm, as published.

    Args:
        name: attribute that holds the core.
        core: (B, L, U, H, W) to the same, with ``forward`` and ``step`` as ``ConvS5``.
        channels: U.
        groups: of the group norms; must divide the channels.
        dropout: after the residual branch.
        edges: see ``ConvS5``.
    """

    def __init__(
        self, name: str, core: nn.Module, channels: int, groups: int, dropout: float, edges: Edges
    ) -> None:
        super().__init__()
        if channels % check_positive("groups", groups):
            raise ConfigError(f"groups ({groups}) must divide the channels ({channels})")
        self._name = name
        self.add_module(name, core)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv1 = conv2d(channels, channels, 3, edges)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.conv2 = conv2d(channels, channels, 3, edges)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.GroupNorm(groups, channels)

    def _output(self, x: Tensor, y: Tensor) -> Tensor:
        z = F.gelu(y)
        h = self.conv1(F.gelu(self.norm1(z)))
        z = z + self.conv2(F.gelu(self.norm2(h)))
        return self.norm(x + self.dropout(z))

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """As ``ConvS5.forward``."""
        y, state = getattr(self, self._name)(x, state)
        z = self._output(x.flatten(0, 1), y.flatten(0, 1))
        return z.unflatten(0, x.shape[:2]), state

    def step(self, x_t: Tensor, state: State) -> tuple[Tensor, State]:
        """As ``ConvS5.step``."""
        y, state = getattr(self, self._name).step(x_t, state)
        return self._output(x_t, y), state


class ConvS5Block(ResidualBlock):
    """``ResidualBlock`` around a ConvS5.

    Args:
        channels: U.
        d_state: see ``ConvS5``.
        kernel: see ``ConvS5``.
        init: see ``ConvS5``.
        groups: of the group norms; must divide the channels.
        dropout: after the residual branch.
        edges: see ``ConvS5``.
        dt_min: see ``ConvS5``.
        dt_max: see ``ConvS5``.
        read_kernel: see ``ConvS5``.
    """

    def __init__(
        self,
        channels: int,
        d_state: int = 64,
        kernel: int = 3,
        init: Init = "legs",
        groups: int = 32,
        dropout: float = 0.0,
        edges: Edges = "zeros",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        read_kernel: int | None = None,
    ) -> None:
        times = {"dt_min": dt_min, "dt_max": dt_max}
        core = ConvS5(
            channels, d_state, kernel, init=init, edges=edges, read_kernel=read_kernel, **times
        )
        super().__init__("ssm", core, channels, groups, dropout, edges)


def _as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.to(torch.complex64).resolve_conj().contiguous()).clone()
