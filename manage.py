#!/usr/bin/env python
"""Run a management command: `python manage.py help` lists them."""

import sys

from batchserver.program import manage

if __name__ == "__main__":
    sys.exit(manage(sys.argv))
