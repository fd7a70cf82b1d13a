"""Files for the tools that people train with: one module a tool with its tables, and the way back."""
