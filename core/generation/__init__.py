"""Text from a language model: greedy, sampled, or by (diverse) beam search."""

from longseq.core.generation.decoding import Generation, generate
from longseq.core.generation.sampling import Sampling

__all__ = ["Generation", "Sampling", "generate"]
