"""Holds the simulator against measurements of real engines, as they were made, and never tunes.

``validate(paths, options)`` finds out what each file or folder is, runs the simulator the way the measurement was made,
and returns residuals and metrics; see docs/validation.md.
"""
