"""Whose turn it is, and what keeps all lines back: persons first, the operator's pause, quiet hours."""
