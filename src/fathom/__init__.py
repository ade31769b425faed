"""fathom: one person, one machine, from raw text to a chat model they trained themselves."""

__version__ = "0.1.0"
