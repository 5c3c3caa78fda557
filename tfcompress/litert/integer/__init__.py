"""Files that compute with integers throughout."""
