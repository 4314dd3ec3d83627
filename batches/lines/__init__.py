"""A line of an input file as text: reading it, how its prompt begins, and which requests are the same. No Django."""
