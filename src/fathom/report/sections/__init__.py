"""The parts of a report, each a function from a history to a section (pure)."""
