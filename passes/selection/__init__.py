"""Selection passes: which channels go, given scores and a budget."""
