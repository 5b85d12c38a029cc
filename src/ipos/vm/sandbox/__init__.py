"""What a process that runs somebody else's program cannot reach. Loads nothing of the engine."""
