"""What the server reports: how far a batch is, whether the server is well, figures for a monitor. Writes no row."""
