"""A transformers cache that holds keys and values as the packed codes of a codebook (docs/codebook-format.md)."""
from kvcal.cache.kvcal_cache import KvcalCache

__all__ = ["KvcalCache"]
