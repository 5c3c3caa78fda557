"""Distillation: the float model, or another, teaches the student."""
