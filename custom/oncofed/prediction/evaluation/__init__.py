"""How a trained model does on labelled cases: over all, by subgroup, beside another model."""
