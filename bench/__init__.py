"""The benchmark: Tidegate against its peers and against the machine's limits. See README.md."""
