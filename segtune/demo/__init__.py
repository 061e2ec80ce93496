"""The built-in demonstration: generated street scenes, so that the whole job runs without data."""
