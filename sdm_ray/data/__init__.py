"""Data: sources, splits by content hash, tokenisation with a cache, batches on the device."""
