"""Search spaces and the ledger of a search."""
