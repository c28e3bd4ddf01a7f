"""The embedded models (``zoo:``): their skills, their tasks, and how they are trained from a seed."""
