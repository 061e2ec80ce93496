"""Volumes as slices: reading NIfTI, the slice cache, and how slices become images and volumes again."""
