"""Many runs side by side: the grid, its cells, and one table of quality and cost."""
