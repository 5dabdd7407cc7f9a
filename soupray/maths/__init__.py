"""Pure mathematics on arrays and tensors: no store, no Ray, no files."""
