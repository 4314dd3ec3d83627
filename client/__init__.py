"""The owner's command line: a client of the HTTP API alone, which runs on another machine too.

It imports nothing else of this project and no Django. What is slow to import (requests, rich, jinja2) is imported where
it is used, so that `script/batch --help` and completion are quick.
"""
