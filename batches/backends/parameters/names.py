"""Full names of members, as messages show them. Pure.

Names of members come from the sender: they may be as long as a line, and hold anything.
"""

import json

LONGEST_NAME = 100


def shortened(text: str) -> str:
    """A name for a message, however long the sender made it: its beginning and its end."""
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME // 2] + "…" + text[1 - LONGEST_NAME // 2 :]


def printable(param: str) -> str:
    """The full name of a member, as every database, header and terminal takes it: what cannot be printed (NUL, half a
    surrogate pair, a line break) is spelled as JSON spells it."""
    if not param.isprintable():
        param = "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in param)
    return shortened(param)
