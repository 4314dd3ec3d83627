"""What becomes of each member of a request: a table for each kind of model server and each endpoint."""
