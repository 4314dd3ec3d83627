"""A line of an input file as text: how it is read, how its prompt begins, which requests are the same. No Django."""
