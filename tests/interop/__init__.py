"""Other libraries' tools around skve."""
