"""The element-wise end of the product forms: y = act(gate(a)∘b + c) in one pass."""
