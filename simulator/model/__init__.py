"""The model: architecture facts, parameter counts, bytes."""
