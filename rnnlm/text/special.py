"""Tokens that stand for no text: their ids and names, the same in every vocabulary."""

PAD_ID = 0
"""Fills rows of unequal length; never an input that counts, never a target."""
EOS_ID = 1
"""Ends a document, a sentence or (word vocabularies) a line, and starts whatever is generated."""
UNK_ID = 2
"""What is not in the vocabulary (word and char vocabularies only)."""

PAD = "<pad>"
EOS = "<eos>"
UNK = "<unk>"
