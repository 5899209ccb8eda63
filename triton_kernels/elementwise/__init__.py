"""Kernels of act(gate(a)∘b + c) with batch norms, and what they share; operators are beside it."""
