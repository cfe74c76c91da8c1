"""Text to token ids and back: byte-level BPE and characters, every on-disk form, training."""
