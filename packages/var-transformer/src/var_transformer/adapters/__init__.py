"""Low-rank adapters (LoRA, arXiv:2106.09685): what they adapt, their files, training and merging.

An adapter adds ``scale * B A`` to some weights, with A (rank, inputs) and B (outputs, rank), and
brings rows of the class embeddings. Training goes through A and B beside the weights
(``low_rank``); a generation adds them to the weights first (``merging``), so that it takes no
longer.
"""
