"""``POST /v1/responses``: OpenAI's Responses API, translated into chat completions and back, and its state."""
