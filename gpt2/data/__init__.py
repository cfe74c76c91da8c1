"""From any text to shards of token ids, and from shards to batches.

`prepare.prepare` writes a data folder (`sources`, `readers`, `splitting` and `resume` are its parts), `shards`
describes, writes and reads one, `loader` draws batches from it.
"""
