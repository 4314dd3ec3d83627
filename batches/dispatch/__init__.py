"""The inference worker's work: claimed lines become calls to one backend, and their answers rows."""
