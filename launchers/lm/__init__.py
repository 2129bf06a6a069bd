"""The reference job: a decoder-only language model trained on a data mix."""
