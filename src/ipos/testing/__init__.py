"""A whole pool in one process, under virtual time, from a seed. Public: use it to test what you build on IPOS."""

from ipos.testing.world import World, run

__all__ = ["World", "run"]
