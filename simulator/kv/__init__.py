"""KV blocks: the pool and the prefix cache."""
