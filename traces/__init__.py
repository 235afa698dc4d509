"""Request traces: the ``Trace`` table, readers of public formats, generators and transforms."""

from traces.trace import Labels, PrefixBlocks, Trace

__all__ = ["Labels", "PrefixBlocks", "Trace"]
