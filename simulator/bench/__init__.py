"""How fast the simulator is: fixed cases, measured in CPU-seconds."""
