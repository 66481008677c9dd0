"""Drop-in replacements for, and loaders of, other projects' objects; each module is imported on its own."""
