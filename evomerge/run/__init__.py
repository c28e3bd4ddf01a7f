"""A run: configuration, journal, coordinator, resume, verify, views and export."""
