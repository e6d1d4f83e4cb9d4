"""What a user may declare: pure values, no torch, no database."""
