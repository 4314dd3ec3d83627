"""What helps against the reasons for which lines fail, by their code. The server's own message says what was wrong."""

RETRY = "{command} retry {id}"
HINTS = {
    "context_length_exceeded": f"Shorten the prompts, or choose a model with a larger context: {RETRY} --model MODEL.",
    "request_timeout": f"Raise LINE_TIMEOUT_S, or lower max_tokens. Then: {RETRY}.",
    "model_not_found": f"Get the model, or choose another: {RETRY} --model MODEL.",
    "batch_expired": f"Ask the lines that are left, in a longer window: {RETRY} --errors expired --window 14d.",
    "batch_cancelled": f"Ask the lines that are left: {RETRY}.",
    "backend_crash": "The model server's log says why it ended; against want of memory, a smaller context or "
    f"fewer slots (BACKEND_PARALLEL) help. Then: {RETRY}.",
    "rate_limit_exceeded": f"The model server was busy with others. Later: {RETRY}.",
    "incomplete_response": f"The model server broke off its answers; its log says why. Then: {RETRY}.",
    "reply_too_large": "Lower max_tokens, or raise MAX_REPLY_BYTES.",
    "unknown_url": "The model server has no such endpoint; docs/deploy.md says which one has it.",
    "prompt_unchecked": f"Nobody knows whether the prompts were cut. Ask again: {RETRY}.",
    "input_unreadable": f"Look whether the disk with the input file is there. Then: {RETRY}.",
    "internal_error": f"The server's log says more. Then: {RETRY}.",
}
FOR_MEMBERS = "Change the lines; STRICT_PARAMETERS=False sends them although the model server ignores a member of them."


def hint(code: str | None, *, command: str, batch_id: str) -> str:
    """A sentence with the setting or the command that helps; empty if nothing general does."""
    if code and code.startswith(("invalid_", "unsupported_", "unknown_parameter")):
        return FOR_MEMBERS
    return HINTS.get(code or "", "").format(command=command, id=batch_id)
