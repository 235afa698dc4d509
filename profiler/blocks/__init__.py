"""Attention's thread blocks: the constants of ``simulator/cost/flash_attention.py`` from measured batches."""
