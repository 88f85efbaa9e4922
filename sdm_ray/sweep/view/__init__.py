"""Output for the user: the plan, progress and status of a sweep."""
