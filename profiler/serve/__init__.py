"""Serve a trace with a real engine on this device, and hold the simulator against it.

``run`` (torch, and transformers for its engine) serves and writes what happened; ``compare`` (the simulator, no torch)
predicts the same from kernels measured on that device. The two meet in JSON files (``record``), so that serving can be
done on a bare GPU machine: ``python -m profiler.serve run EXPERIMENT --out DIR``.
"""
