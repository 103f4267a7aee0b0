"""Think: K continuations of one prompt, and the samplers that are its rivals."""
