"""The full quadratic form xᵀ W x of narrow inputs in one kernel."""
