"""Recurrent layers with one kernel, and their forms."""
