"""What a step costs: time, memory, communication. Pure functions of a model and its hardware."""
