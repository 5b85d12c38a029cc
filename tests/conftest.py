"""For all tests: hypothesis judges what is computed, never how long a shared machine took over it; it prints what repeats a failure."""

from hypothesis import settings

settings.register_profile("ipos", deadline=None, print_blob=True)
settings.load_profile("ipos")
