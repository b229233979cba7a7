"""IJB-B and IJB-C: lists, templates, 1:1 and 1:N."""
