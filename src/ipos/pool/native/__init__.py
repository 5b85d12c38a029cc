"""Native tasks: programs of one's own machines, at full speed, in a directory of their own."""
