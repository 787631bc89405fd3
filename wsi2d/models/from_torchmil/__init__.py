"""Models of torchmil under the names ``torchmil:…``."""
