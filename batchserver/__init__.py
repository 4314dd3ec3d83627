"""Wiring: settings, urls, processes, and what the first start makes."""

import sys

# SQLite before 3.51.3 can corrupt a WAL database that two processes write at the same instant, and most systems ship an
# older one. pysqlite3 bundles a fixed library under the standard module's interface; it has to be in place before
# Django imports sqlite3. If there is no wheel, the system check batchserver.W001 says so.
try:
    import pysqlite3
except ImportError:
    pass
else:
    sys.modules["sqlite3"] = pysqlite3
    sys.modules["sqlite3.dbapi2"] = pysqlite3.dbapi2
