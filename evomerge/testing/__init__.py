"""Contract suites for authors of plug-ins: subclass a suite, give it a factory, run pytest."""
