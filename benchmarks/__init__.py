"""What `manage.py benchmark` measures, one module for each scenario, and the tools to measure with."""
