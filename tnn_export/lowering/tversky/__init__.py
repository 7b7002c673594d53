"""The lowering of the Tversky head."""
