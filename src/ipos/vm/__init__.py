"""The engine: programs that can be stopped anywhere and moved anywhere."""
