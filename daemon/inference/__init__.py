"""Local language models: the engine process, and the model that ships with Hermes."""
