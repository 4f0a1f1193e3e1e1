"""The sequences that ship with the package; their source is in ``genomics/samples/SOURCE.md``."""

from longseq.core.samples import Samples

# A whole genome, 1,042,519 bp, with its genes (GenBank), and two short FASTA records.
SAMPLES = Samples(
    "genomics", {"chlamydia_trachomatis": "chlamydia_trachomatis.gbk.gz", "tiny": "tiny.fa"}
)
