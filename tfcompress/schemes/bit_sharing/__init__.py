"""Single-path bit sharing (arXiv 2101.04935)."""

from tfcompress.schemes.bit_sharing.scheme import BitSharing

__all__ = ["BitSharing"]
