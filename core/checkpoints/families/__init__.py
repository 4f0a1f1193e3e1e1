"""Published families of language models by ``model_type``: their ``config.json`` to our settings,
their names to ours."""

from longseq.core.checkpoints.families.base import Family, Published
from longseq.core.checkpoints.families.hybrids import BAMBA, FALCON_H1, JAMBA
from longseq.core.checkpoints.families.hyenadna import HYENADNA
from longseq.core.checkpoints.families.mamba import FALCON_MAMBA, MAMBA, MAMBA2, MAMBA_SSM
from longseq.core.checkpoints.families.recurrent_gemma import RECURRENT_GEMMA
from longseq.core.checkpoints.families.xlstm import XLSTM

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        MAMBA,
        MAMBA2,
        MAMBA_SSM,
        FALCON_MAMBA,
        FALCON_H1,
        BAMBA,
        JAMBA,
        RECURRENT_GEMMA,
        XLSTM,
        HYENADNA,
    )
}
REFUSED: dict[str, str] = {
    "zamba": "its attention blocks are shared between layers and read the embedding again",
    "zamba2": "its attention blocks are shared between layers and read the embedding again",
    "nemotron_h": "its layers are single blocks of three kinds",
    "granitemoehybrid": "its layers have experts",
}
"""Families that are near to ours and do not fit, with the reason."""

__all__ = ["FAMILIES", "REFUSED", "Family", "Published"]
