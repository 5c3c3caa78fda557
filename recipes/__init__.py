"""Command-line programs, one per scheme: `python -m recipes.NAME --helpfull`."""
