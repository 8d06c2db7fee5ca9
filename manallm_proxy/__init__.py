"""manallm-proxy: one OpenAI-shaped server in front of every model a team can reach."""

__version__ = "0.1.0"
