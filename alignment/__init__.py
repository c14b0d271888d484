"""Fine-grained alignment of entities and images.

The package's place in the house is fixed: it may import `xmatch` alone. It has no modules in this release.
"""
