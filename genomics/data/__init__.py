"""Readers of the field's files (FASTA, GenBank, BED), train/validation/test splits and windows."""
