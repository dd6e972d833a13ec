"""The HTTP gateway: a process of its own that keeps the engines and answers OpenAI-compatible requests."""
