"""How dates are written for persons: FORMAT_MODULE_PATH."""
