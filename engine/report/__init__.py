"""Pages: one self-contained HTML file about a model, with everything the compiler knows of it."""
