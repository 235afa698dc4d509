"""Floor 10: the command line. Thin: parse, call, print.

One file per command; heavy imports wait until they are used.
"""
