"""Floor 0: errors, units, named random streams and the registry. Imports nothing of ours."""
