"""Pure mathematics on tensors: no store, no Ray, no files."""
