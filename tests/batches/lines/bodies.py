"""Bodies of requests at each endpoint."""

from tests.conftest import CHAT

COMPLETIONS, RESPONSES, EMBEDDINGS = "/v1/completions", "/v1/responses", "/v1/embeddings"
GENERATING = [CHAT, COMPLETIONS, RESPONSES]


def asking(endpoint, text, /, **more):
    """A body whose prompt is this text."""
    if endpoint == CHAT:
        return {"messages": [{"role": "user", "content": text}]} | more
    return {"prompt" if endpoint == COMPLETIONS else "input": text} | more
