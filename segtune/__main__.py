"""`python -m segtune`."""

from segtune.cli import main

main()
