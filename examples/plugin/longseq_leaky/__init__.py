"""A mixer, a forecaster and a metric outside longseq."""
