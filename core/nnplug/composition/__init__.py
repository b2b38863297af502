"""From the text after ``-tr`` to one config with everything decided."""
