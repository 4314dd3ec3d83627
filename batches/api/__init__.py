"""What clients call: batches, models, and the endpoints of the model server, passed through."""
