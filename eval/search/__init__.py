"""Search of probes in a gallery, 1:N, on any folders or lists of faces."""
