"""Layer 0: errors, registries, hooks, dispatch, state, selection and report. Knows no technique."""
