"""Commands behind ``longseq``: the registry of domains and what runs their tasks."""
