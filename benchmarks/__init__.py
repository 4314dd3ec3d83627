"""What `manage.py benchmark` measures, one module for each scenario, and what they measure with."""
