"""What holds for all tests."""

from hypothesis import settings

settings.register_profile("evomerge", deadline=None)  # machines are shared: timings are never asserted
settings.load_profile("evomerge")
