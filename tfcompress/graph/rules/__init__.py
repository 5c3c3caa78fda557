"""Rules: the channels that each operation reads, makes, ties and freezes."""
