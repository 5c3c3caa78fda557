"""Layers that become several, so that schemes can treat each of these."""
