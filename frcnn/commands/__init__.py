"""Names the package."""
