from .sampler import SimplexGPSampler


__all__ = ["SimplexGPSampler"]
