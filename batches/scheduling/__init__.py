"""Which part has its turn, and what keeps all lines back: a person's request, the operator's pause, quiet hours."""
