"""Channel pruning: what units matter, how many each group loses, what that costs."""
