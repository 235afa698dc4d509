"""Measure kernels on a real device, fit calibrations, validate the simulator. The simulator never imports this."""
