"""The survey: published systems rebuilt as scenarios, and how near their claims come.

``spec`` is the format of a system's file, ``evaluate`` runs it, ``runner`` runs many, ``scoreboard`` shows them.
"""
