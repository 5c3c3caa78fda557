"""A model's graph: reading it, following its channels, rebuilding it smaller."""

from tfcompress.graph.channels import Channels
from tfcompress.graph.graph import Graph
from tfcompress.graph.remove import remove_channels

__all__ = ["Channels", "Graph", "remove_channels"]
