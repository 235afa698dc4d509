"""GPUs, nodes, links, prices and power."""
