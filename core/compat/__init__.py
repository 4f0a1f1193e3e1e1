"""Drop-in signatures of other libraries, as thin adaptors over longseq's operators."""
