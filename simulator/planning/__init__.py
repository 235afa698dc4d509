"""Questions about designs: compare two runs, sweep over fields, plan capacity.

``compare`` holds two runs against each other, ``sweep`` runs every combination, ``evaluate`` and ``solve`` answer how
much a design carries and which one is cheapest; ``search`` is the bisection that planning and the survey share.
"""
