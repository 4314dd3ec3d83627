import sys

from batches.backends.parameters.page import page

sys.stdout.write(page())
