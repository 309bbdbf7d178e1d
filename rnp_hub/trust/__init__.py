"""Where a folder comes from, and that it is still what it was: statements, bills, signatures."""
