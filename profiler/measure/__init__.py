"""Kernels and whole steps timed on a real device (``windtunnel profile``).

Needs torch and numpy alone, so that this folder (with ``profiler/__init__.py``) can be carried to a bare GPU machine:
``python -m profiler.measure CAMPAIGN.json --out DIR``. The way of a point: ``campaign`` (what to measure) ->
``points`` (one dict per measurement) -> ``suites`` (buffers, call, reference) -> ``timing`` -> ``journal`` (JSON Lines,
see ``profiler/tables/schema.md``).
"""
