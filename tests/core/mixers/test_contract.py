"""The laws of the mixer contract (``longseq.core.testing``), for every registered mixer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from longseq.core import testing
from longseq.core.backbone import Backbone
from longseq.core.errors import ConfigError
from longseq.core.mixers import create_mixer, list_mixers
from longseq.core.training.optim import parameter_groups
from small_mixers import SMALL

D_MODEL = 16
DTYPES = [torch.float32, torch.float64]


def cases() -> Iterator[Any]:
    """Every registered mixer, every law that holds for it, both dtypes where the law has none of
    its own."""
    for name in list_mixers():
        for kwargs in SMALL.get(name, [{}]):
            label = name + "".join(f"-{key}={value}" for key, value in kwargs.items())
            for law in testing.checks_of(testing.Subject(name, kwargs).fresh()):
                for dtype in DTYPES[: 1 if law in testing.ONCE else 2]:
                    yield pytest.param(
                        name, kwargs, law, dtype, id=f"{law}-{str(dtype)[6:]}-{label}"
                    )


@pytest.mark.parametrize(("name", "kwargs", "law", "dtype"), list(cases()))
def test_every_mixer_obeys(
    name: str, kwargs: dict[str, object], law: str, dtype: torch.dtype
) -> None:
    subject = testing.Subject(name, kwargs, dtype, D_MODEL)
    testing.checks_of(subject.fresh())[law](subject)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [(name, one) for name in list_mixers() for one in SMALL.get(name, [{}])],
)
def test_what_every_mixer_returns(name: str, kwargs: dict[str, object]) -> None:
    """Neither the state nor a later call hangs on the caller's memory."""
    testing._check_form(testing.Subject(name, kwargs, torch.float32, D_MODEL))


@pytest.mark.parametrize(
    ("name", "kwargs"), [(name, one) for name, some in SMALL.items() for one in some]
)
def test_parameters_with_a_rate_of_their_own_exist(name: str, kwargs: dict[str, object]) -> None:
    """With every option, or the optimiser refuses the model."""
    mixer = create_mixer(name, D_MODEL, **kwargs)
    assert sum(len(one["params"]) for one in parameter_groups(mixer, 1e-3, 0.1)) > 0


@pytest.mark.parametrize("name", list_mixers())
@pytest.mark.parametrize("d_model", [0, -4, 2.5, True])
def test_wrong_width_is_refused(name: str, d_model: object) -> None:
    with pytest.raises(ConfigError, match="d_model"):
        create_mixer(name, d_model)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list_mixers())
def test_a_name_is_enough_for_a_stack(name: str) -> None:
    """The stack tells a mixer its place by the names of some hyper-parameters: no other may have
    them."""
    with torch.device("meta"):
        stack = Backbone(64, 2, name)
    assert len(stack.layers) == 2


@pytest.mark.parametrize("name", list_mixers())
def test_unknown_hyper_parameter_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no hyper-parameter 'd_stat'"):
        create_mixer(name, D_MODEL, d_stat=4)


def test_unknown_mixer_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mamba'"):
        create_mixer("mmaba", D_MODEL)
