"""Planning: which engine runs which model on which nodes, and what that takes."""
