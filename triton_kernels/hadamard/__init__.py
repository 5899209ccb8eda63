"""The element-wise end of the product forms: y = a∘b + c in one pass."""
