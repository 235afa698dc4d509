"""Windtunnel: a discrete-event simulator for LLM serving clusters."""

from __future__ import annotations

__version__ = "0.1.0"
