"""Muon for matrices and filters with AdamW for the rest, as one torch optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from longseq.core.errors import ConfigError
from longseq.core.training.optim import FilterAxes

# Quintic Newton-Schulz iteration with the steepest slope at zero (Jordan et al. 2024, "Muon: An
# optimizer for hidden layers in neural networks"): singular values end between about 0.7 and 1.2,
# not at 1.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_GRAM_STEPS = 3
"""Iterations on the Gram matrix alone: an error of 1e-7 there may grow by 12 with each."""


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Returns U Vᵀ of a matrix U S Vᵀ, roughly: its singular values lie near 1.

    Args:
        matrix: (M, N), real.
        steps: Newton-Schulz iterations.
    """
    x = matrix.to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    x = x / x.norm().clamp(min=1e-7)
    # Rounding of the Gram matrix grows with every iteration on it alone, bfloat16's at once.
    most = _GRAM_STEPS if x.dtype == torch.float32 and 2 * x.shape[1] > 3 * x.shape[0] else 1
    while steps > 0:
        x = _iterate(x, min(steps, most))
        steps -= most
    return (x.mT if tall else x).to(matrix.dtype)


def _iterate(x: Tensor, steps: int) -> Tensor:
    """Returns X after some iterations X ← P X with P = a + b G + c G² and G = X Xᵀ.

    A single product with X ends them: G becomes P G P, which is smaller than X where X is wide.
    """
    a, b, c = _COEFFICIENTS
    gram, whole = x @ x.mT, None
    for left in range(steps - 1, -1, -1):
        square = gram @ gram
        if left == 0 and whole is None:
            return torch.addmm(x, torch.add(b * gram, square, alpha=c), x, beta=a)
        factor = torch.add(b * gram, square, alpha=c)
        factor.diagonal().add_(a)
        whole = factor if whole is None else factor @ whole
        if left:
            gram = factor @ (gram @ factor)
    assert whole is not None
    return whole @ x


class MuonAdamW(Optimizer):
    """Muon (orthogonalised momentum) for the matrices that are decayed, AdamW for everything else.

    Matrices are the parameters of groups named "decay" (``optim.parameter_groups``) with at least
    two dimensions and real values; a filter (O, I, …) counts as the matrix (O, I · …). A parameter
    of any group whose axes the group's "filter_axes" names (a state-space layer's B and C) counts
    as the matrix that they tell, and is decayed as the group "decay" is. The step of a matrix of M
    rows and N columns is ``muon_lr · √max(1, M / N)``.

    Args:
        params: groups with a "name".
        lr: learning rate of AdamW.
        betas: decay rates of AdamW.
        eps: of AdamW.
        muon_lr: learning rate of matrices; schedules multiply both.
        momentum: of matrices.
        nesterov: look one step ahead.
        steps: Newton-Schulz iterations.

    Raises:
        ConfigError: for values outside their range.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.95),
        eps: float = 1e-8,
        muon_lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        steps: int = 5,
    ) -> None:
        if muon_lr < 0 or not 0 <= momentum < 1 or steps < 1:
            raise ConfigError(
                f"muon_lr must be ≥ 0, momentum in [0, 1), steps ≥ 1, got {muon_lr}, {momentum}, "
                f"{steps}"
            )
        plain: list[dict[str, Any]] = []
        matrices: list[dict[str, Any]] = []
        given = list(params)
        decay = next((g.get("weight_decay", 0.0) for g in given if g.get("name") == "decay"), 0.0)
        for group in given:
            listed = list(group["params"])
            axes = group.get("filter_axes", {})
            chosen = [
                i
                for i, p in enumerate(listed)
                if _is_matrix(p) and (i in axes or group.get("name") == "decay")
            ]
            rest = [p for i, p in enumerate(listed) if i not in chosen]
            common = {key: value for key, value in group.items() if key != "filter_axes"}
            if chosen:
                own: dict[str, Any] = {"lr": muon_lr, "momentum": momentum, "nesterov": nesterov}
                own |= {"steps": steps, "name": "muon", "muon": True, "weight_decay": decay}
                if axes:
                    own["filter_axes"] = {n: axes[i] for n, i in enumerate(chosen) if i in axes}
                if group.get("name") != "decay":
                    own["name"] = f"muon_{group.get('name')}"
                matrices.append({**common, "params": [listed[i] for i in chosen], **own})
            if rest:
                plain.append({**common, "params": rest, "muon": False})
        # AdamW fills in and checks its own defaults; its state and groups are this optimiser's.
        held = [parameter for group in plain for parameter in group["params"]]
        self._adam = AdamW(
            plain or [{"params": [torch.empty(0)]}],
            lr=lr,
            betas=(betas[0], betas[1]),
            eps=eps,
            # One pass over small tensors instead of ten; torch has it for real ones alone.
            fused=all(p.is_floating_point() and p.device.type == "cpu" for p in held) or None,
        )
        adam_groups = self._adam.param_groups if plain else []
        super().__init__([*adam_groups, *matrices], {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one step.

        Args:
            closure: computes the loss again, with gradients.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # A loaded state dict replaces groups and state, so they are handed over at every step.
        self._adam.param_groups = [group for group in self.param_groups if not group["muon"]]
        self._adam.state = self.state
        self._adam.step()
        for group in self.param_groups:
            if group["muon"]:
                axes = group.get("filter_axes", {})
                for i, parameter in enumerate(group["params"]):
                    if parameter.grad is not None:
                        self._step_matrix(parameter, parameter.grad, group, axes.get(i))
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the state of another run.

        Args:
            state_dict: of an optimiser with the same groups.

        Raises:
            ConfigError: if its groups are others.
        """
        theirs, own = (
            [len(group["params"]) for group in groups]
            for groups in (state_dict["param_groups"], self.param_groups)
        )
        if theirs != own:
            raise ConfigError(
                f"the checkpoint's optimiser has groups of {theirs} parameters, Muon has {own} "
                "(another optimiser, or a version that took other parameters for matrices): it "
                "cannot be resumed, only trained anew"
            )
        super().load_state_dict(state_dict)

    def _step_matrix(
        self,
        parameter: Tensor,
        gradient: Tensor,
        group: dict[str, Any],
        axes: FilterAxes | None,
    ) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"]
        buffer.lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
        rows, columns = axes or ((0,), tuple(range(1, update.ndim)))
        # The order of rows and columns does not matter: as they lie in memory nothing is copied.
        strides: tuple[int, ...] = update.stride()
        order = [
            axis
            for side in (rows, columns)
            for axis in sorted(side, key=lambda axis: -strides[axis])
        ]
        moved = update.permute(order)
        flat = orthogonalise(moved.flatten(len(rows)).flatten(0, len(rows) - 1), group["steps"])
        scale = math.sqrt(max(1.0, flat.shape[0] / flat.shape[1]))
        back = [order.index(axis) for axis in range(update.ndim)]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(flat.view(moved.shape).permute(back), alpha=-group["lr"] * scale)


def _is_matrix(parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and not parameter.is_complex()
