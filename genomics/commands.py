"""What the command line offers for genomics; imports nothing heavy."""

from longseq.core.domain import Command, Domain
from longseq.genomics import REQUIRES

DOMAIN = Domain(
    name="genomics",
    help="DNA language models: train on FASTA or GenBank, score genomes, beside order-k Markov "
    "baselines",
    requires=REQUIRES,
    task="longseq.core.training.task.BaseTask",
    data="longseq.core.training.hyper.BaseData",
    demo=Command(
        "train on a packaged genome and compare with the baselines", "longseq.genomics.demo:demo"
    ),
    compare=Command(
        "bits per base of language models beside Markov models",
        "longseq.genomics.compare:GenomeComparison",
    ),
    modules=(
        "longseq.genomics.task",
        "longseq.genomics.masked_task",
        "longseq.genomics.sequence_task",
        "longseq.genomics.gene_task",
        "longseq.genomics.data.module",
        "longseq.genomics.data.labelled",
        "longseq.genomics.data.gene_labels",
        "longseq.genomics.strings.task",
        "longseq.genomics.strings.data",
    ),
    commands={
        "annotate": Command(
            "the genes of a bacterial genome, to GFF3, beside Prodigal",
            "longseq.genomics.annotate:run",
        ),
        "cross_validate": Command(
            "a classifier of labelled sequences beside k-mer logistic regression, by folds",
            "longseq.genomics.cross_validation:run",
        ),
        "complete": Command(
            "proteins or molecules drawn from a model of such strings, or a missing part of one",
            "longseq.genomics.strings.complete:run",
        ),
        "label": Command(
            "class or number of every sequence of a file, by a trained SequencePrediction",
            "longseq.genomics.label:run",
        ),
        "embed": Command(
            "the model's vectors per base, window or annotated feature, to Parquet or NPY",
            "longseq.genomics.embed:run",
        ),
        "generate": Command(
            "new sequences from a model, with a report beside samples of an order-k model",
            "longseq.genomics.generate:run",
        ),
        "import": Command(
            "a published HyenaDNA, Caduceus or DNA-xLSTM as a file of ours",
            "longseq.genomics.published:run",
        ),
        "export": Command(
            "a checkpoint's model alone, as a small safetensors file",
            "longseq.genomics.scorers:run",
        ),
        "mutagenesis": Command(
            "log-likelihood ratio of every single-base change of a region, with a logo",
            "longseq.genomics.mutagenesis:run",
        ),
        "variants": Command(
            "log-likelihood ratio of every allele of a VCF file, into its INFO",
            "longseq.genomics.variants:run",
        ),
        "predict": Command(
            "log-likelihood of every base of a genome, to a table, bedGraph or bigWig",
            "longseq.genomics.predict:run",
        ),
    },
    check="longseq.genomics.data.check:check",
    examples={"fit": "--config mamba_tiny --data.fasta my_genome.fa"},
    defaults={
        "model": "longseq.genomics.task.CausalLanguageModel",
        "data": "longseq.genomics.data.module.GenomeData",
        "trainer.check_val_every_n_epoch": None,
        "trainer.gradient_clip_val": 1.0,
    },
)
