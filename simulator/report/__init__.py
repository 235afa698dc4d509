"""Pictures, the HTML report and exports. Reads what metrics found; changes nothing."""

from __future__ import annotations

from simulator.report.diagnosis import Diagnosis, diagnose
from simulator.report.files import atomic_dir, atomic_json, atomic_path, atomic_write
from simulator.report.html import write_report

__all__ = [
    "Diagnosis",
    "atomic_dir",
    "atomic_json",
    "atomic_path",
    "atomic_write",
    "diagnose",
    "write_report",
]
