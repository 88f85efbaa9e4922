"""Pictures, tables and the page of a sweep; they draw what they are given and measure nothing."""
