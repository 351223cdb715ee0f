"""From a run to what people read: ``result.json``, ``report.html``, the model and its MONAI bundle."""
