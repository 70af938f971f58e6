"""What tells the particles of a molecule apart: bond graph, chirality, internal coordinates."""
