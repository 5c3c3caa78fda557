"""Files in which all operators compute with integers."""
