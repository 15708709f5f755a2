"""Where sessions are kept: one module per provider. They import ``core`` and never one another."""
