"""The Pareto frontier: points, dominance and hypervolume, selection rules, tables."""
