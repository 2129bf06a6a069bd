"""The data of the reference job, from files to batches.

sources         where a component's documents lie, and how they are read
builtin         three components that come with Python itself
tokenizer       bytes, or any file of the ``tokenizers`` library
shards          documents tokenized once, in parallel, into memory-mapped files
corpus          all components prepared, and the questions made of their held-out documents
contamination   what of the questions and the held-out documents was trained on
mix             the order of the sequences, drawn from the components by their weights
"""
